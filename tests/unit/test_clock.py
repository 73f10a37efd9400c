"""How times are shown: by UTC, and with a date where none is understood."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from fulfillment.clock import length_in_words, time_of_day

NOW = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)
TOKYO = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (NOW, "23:30:00"),
        (NOW - timedelta(hours=23), "00:30:00"),
        (NOW + timedelta(minutes=31), "2026-11-21 00:01:00"),
        (NOW - timedelta(days=1), "2026-11-19 23:30:00"),
        (NOW.astimezone(TOKYO), "23:30:00"),
    ],
)
def test_a_time_of_today_is_shown_without_its_date(at: datetime, shown: str) -> None:
    assert time_of_day(at, NOW) == shown
    assert time_of_day(at, NOW.astimezone(TOKYO)) == shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (600, "10 minutes"),
        (3600, "1 hour"),
        (5460, "1 hour and 31 minutes"),
        (86_400, "24 hours"),
        (86_399, "24 hours"),
        (20, "less than a minute"),
    ],
)
def test_a_length_is_told_in_hours_and_minutes(seconds: int, words: str) -> None:
    assert length_in_words(timedelta(seconds=seconds)) == words
