"""The command line as a person meets it: names from outside are shown, never obeyed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from fulfillment.services import brakes, reasons
from fulfillment.services.context import Context
from fulfillment.store import bindings
from tests.conftest import environment_of
from tests.support import checkout, receive, receive_one, rows

ODD_NAMES = ["Sticker | [/foo] x", "a [bold]b[/bold] c", "[red]", ":smile: *x*", "[link=x]y"]


@pytest.fixture
def environment(context: Context, tmp_path: Path) -> dict[str, str]:
    return environment_of(context, tmp_path, "redis://127.0.0.1:1/0") | {"COLUMNS": "200"}


def run(
    environment: dict[str, str], *words: str, given: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fulfillment.cli", *words]
    done = subprocess.run(
        command,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_names_that_look_like_markup_are_shown_as_they_are(
    context: Context, environment: dict[str, str]
) -> None:
    placed = receive(context, *(checkout(marketHashName=name) for name in ODD_NAMES))
    change = "UPDATE orders SET failure_code = %(n)s, failed_by = 'us', failure_message = %(n)s"
    with context.database.transaction() as session:
        session.execute(change, {"n": "[/oops]"})

    shown = [run(environment, "order", order.external_id) for order in placed]
    listed = run(environment, "orders")

    assert [done.returncode for done in shown] == [0] * len(ODD_NAMES)
    assert all(name in done.stdout for name, done in zip(ODD_NAMES, shown, strict=True))
    assert listed.returncode == 0
    assert "[/oops] (us)" in listed.stdout


def test_no_text_from_outside_commands_the_terminal(
    context: Context, environment: dict[str, str]
) -> None:
    (placed,) = receive(context, checkout(marketHashName="AK\x9b31m\x7f"))
    change = "UPDATE orders SET failure_code = 'x', failed_by = 'us', failure_message = %(n)s"
    with context.database.transaction() as session:
        session.execute(change, {"n": "\x1b[2J\x9d0;x\x07"})
    commands = [
        ["order", placed.external_id],
        ["order", placed.external_id, "--json"],
        ["orders"],
        ["orders", "--json"],
        ["order", "\x1b[2J"],
        ["reconcile", "\x1b[31m\x9b"],
    ]

    done = [run(environment, *command) for command in commands]

    printed = ["".join((each.stdout + each.stderr).split()) for each in done]
    assert [text for text in printed if not text.isprintable()] == []
    assert "AK\\u009b31m\\u007f" in printed[0]
    assert json.loads(done[1].stdout)["marketHashName"] == "AK\x9b31m\x7f"


def test_whoever_doubts_the_database_is_told_that_stops_may_be_missing(
    context: Context, environment: dict[str, str]
) -> None:
    before = run(environment, "accounts")

    said = run(environment, "accounts", "doubt")
    shown = run(environment, "accounts")
    as_json = run(environment, "accounts", "--json")
    run(environment, "accounts", "doubt", "--hours", "0")
    after = run(environment, "accounts")

    lost = "stops that were made after the backup are missing"
    told = [lost in " ".join(done.stderr.split()) for done in (before, said, shown, after)]
    assert told == [False, True, True, False]
    assert json.loads(as_json.stdout)[0]["doubtedUntil"] is not None


def test_a_review_is_ended_against_a_provider_that_cannot_be_asked_only_by_force(
    context: Context, environment: dict[str, str]
) -> None:
    order = receive_one(context)
    rows(context, "UPDATE orders SET status = 'needs_review' RETURNING 1")
    words = ("resolve", order.external_id, "--as", "not-found", "--reason", "their support")

    refused = run(environment, *words)
    forced = run(environment, *words, "--force")

    assert refused.returncode == 1
    assert "main cannot be asked: " in refused.stderr
    assert "use --force" in refused.stderr
    assert (forced.returncode, forced.stdout) == (0, f"{order.external_id} is failed\n")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_a_refused_id_that_is_no_text_is_refused_and_the_others_are_taken(
    context: Context, environment: dict[str, str], options: tuple[str, ...]
) -> None:
    events: list[dict[str, Any]] = [checkout(), checkout(externalId="\ud800"), checkout()]
    lines = "\n".join(json.dumps(event) for event in events)

    done = run(environment, "checkout", "-", *options, given=lines)

    assert done.returncode == 1
    assert "externalId" in done.stdout + done.stderr
    assert len(rows(context, "SELECT 1 FROM orders")) == 2


@pytest.mark.parametrize(
    ("process", "name", "value"),
    [
        ("worker", "ACCOUNTS__MAIN__CLIENT_SECRET", ""),
        ("worker", "ROUTES__ANY", "main,nobody"),
        ("worker", "DATABASE_URL", "postgresql://store@127.0.0.1/orders?secret=hush"),
        ("web", "ACCOUNTS__MAIN__BASE_URL", "http://user@127.0.0.1"),
        ("web", "DATABASE_URL", "postgresql://u\udcff@127.0.0.1/orders"),
        ("web", "API_TOKEN", "x\udcff-long-enough"),
        ("web", "WEB_HOST", "x\udcff"),
        ("web", "WEB_HOST", "192.0.2.1"),
        ("web", "ROUTES__ANY", "main,nobody"),
        ("intake", "ENCRYPTION_KEYS", "bad"),
        ("intake", "ACCOUNTS__MAIN__CLIENT_SECRET", ""),
    ],
)
def test_no_process_starts_with_half_of_its_settings(
    environment: dict[str, str], process: str, name: str, value: str
) -> None:
    done = run(environment | {f"FULFILLMENT_{name}": value, "FULFILLMENT_WEB_PORT": "0"}, process)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: FULFILLMENT_{name}")


@contextmanager
def _read_only(url: str) -> Iterator[None]:
    """Let new connections to the database only read."""
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        alter = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
        connection.execute(alter.format(name, sql.SQL("on")))
        try:
            yield
        finally:
            connection.execute(alter.format(name, sql.SQL("off")))


def test_a_database_that_may_only_be_read_is_told_in_one_line(
    context: Context, environment: dict[str, str]
) -> None:
    with _read_only(environment["FULFILLMENT_DATABASE_URL"]):
        done = run(environment, "checkout", "-", given=json.dumps(checkout()))

    assert done.returncode == 1
    assert done.stderr.startswith("error: PostgreSQL cannot be used")
    assert rows(context, "SELECT 1 FROM orders") == []


def test_no_amount_and_no_status_is_cut_at_80_columns_and_a_pipe_is_as_wide_as_it_must_be(
    context: Context, environment: dict[str, str]
) -> None:
    order = receive_one(context)
    rows(context, "UPDATE orders SET status = 'awaiting_funds' RETURNING 1")
    wallet = "INSERT INTO wallets (account, figure_mills) VALUES ('main', 19861234567) RETURNING 1"
    rows(context, wallet)
    brakes.stop(context, None, "a long word of why it was stopped, as people write them", "me")
    narrow = environment | {"COLUMNS": "80"}
    wide = {name: value for name, value in environment.items() if name != "COLUMNS"}

    shown = [run(narrow, command).stdout for command in ("wallet", "accounts", "orders")]
    piped = run(wide, "wallet").stdout

    assert max(len(line) for text in shown for line in text.splitlines()) <= 80
    assert not any("\u2026" in text for text in shown)
    assert shown[0].count("19861234.56") == 2
    assert order.external_id[:10] in shown[2]
    (line,) = [line for line in piped.splitlines() if "main" in line]
    assert "19861234.56" in line
    assert "as people write them" in line


def test_updates_are_shown_told_again_and_forgotten(
    context: Context, environment: dict[str, str]
) -> None:
    placed = receive(context, checkout(), checkout())
    with context.database.transaction() as session:
        queue = "order.#", r"^order\..*?$", "store.updates"
        bindings.keep(session, "redis", {queue}, context.now())

    since = (placed[0].created_at - timedelta(hours=1)).isoformat()
    asked = run(environment, "updates", "replay", "--since", since)
    of_one = run(environment, "updates", "replay", "--order", placed[1].external_id)
    shown = run(environment, "updates", "--json")
    table = run(environment, "updates")
    forgotten = run(environment, "updates", "forget")

    assert asked.stderr.startswith("2 orders will")
    assert of_one.stderr.startswith("1 order will")
    facts = json.loads(shown.stdout)
    assert (facts["queues"], facts["waiting"]) == (["store.updates"], 2)
    assert facts["missingSince"]
    assert [told["finishedAt"] for told in facts["replays"]] == [None, None]
    assert {told["since"] for told in facts["replays"]} == {since, None}
    assert table.stdout.count("the beginning") == 1
    assert "1970" not in table.stdout
    assert forgotten.stderr.startswith("forgotten: store.updates")
    assert run(environment, "updates").returncode == 0


def test_a_time_to_come_is_refused_with_the_zone_that_it_was_read_in(
    environment: dict[str, str],
) -> None:
    refused = run(environment, "updates", "replay", "--since", "2999-01-01T12:00")

    assert "found 2999-01-01T12:00:00+00:00" in refused.stderr
    assert "a time without a zone is read as UTC" in refused.stderr


def test_listings_show_times_in_utc_with_the_date_of_another_day(
    context: Context, environment: dict[str, str]
) -> None:
    receive(context, checkout(), checkout())
    rows(context, "UPDATE orders SET trade_deadline_at = '2999-01-02 03:04:05+00' RETURNING 1")
    pause = "UPDATE accounts SET paused_until = '2999-01-02 03:04:05+00', pause_reason = 'away' "
    rows(context, pause + "RETURNING 1")

    listed, wallet, accounts = (
        run(environment | {"TZ": "Asia/Tokyo"}, command).stdout
        for command in ("orders", "wallet", "accounts")
    )
    brakes.stop(context, "main", "drill", "anna@host")
    stopped = run(environment, "accounts").stdout

    assert "deadline (UTC)" in listed
    assert listed.count("2999-01-02 03:04:05") == 2
    assert "until 2999-01-02 03:04:05 UTC: away" in wallet
    assert "until 2999-01-02 03:04:05 UTC: away" in accounts
    assert " UTC by anna@host: drill" in stopped


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 2),
        (("--since", "yesterday"), 2),
        (("--since", "9999-12-31T23:59:59-14:00"), 1),
        (("--order", "nobody"), 1),
    ],
    ids=["neither", "no time", "a time to come", "no order"],
)
def test_what_cannot_be_told_again_is_refused(
    context: Context, environment: dict[str, str], options: tuple[str, ...], code: int
) -> None:
    assert run(environment, "updates", "replay", *options).returncode == code
    assert rows(context, "SELECT 1 FROM replays") == []
    assert run(environment, "updates", "forget").returncode == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("order", "a\udcff1"), 1),
        (("accounts", "pause", "main", "--reason", "\udcff"), 1),
        (("accounts", "doubt", "--hours", "inf"), 2),
        (("accounts", "doubt", "--hours", "1e300"), 2),
        (("simulator", "--port", "99999"), 2),
        (("simulator", "--items", "-1"), 2),
        (("simulator", "--speed", "nan"), 1),
        (("simulator", "--speed", "inf"), 1),
        (("simulator", "--hold-s", "nan"), 1),
    ],
)
def test_arguments_that_mean_nothing_are_refused_in_a_line(
    environment: dict[str, str], words: tuple[str, ...], code: int
) -> None:
    assert run(environment, *words).returncode == code


def test_streams_that_are_closed_or_take_no_star_are_no_reason_to_fail(
    context: Context, environment: dict[str, str]
) -> None:
    name = "\u2605 Karambit"
    order = receive_one(context, marketHashName=name)
    ascii_only = environment | {"PYTHONIOENCODING": "ascii"}

    as_table = run(ascii_only, "order", order.external_id)
    as_json = run(ascii_only, "order", order.external_id, "--json")
    command = [sys.executable, "-m", "fulfillment.cli", "orders", "--json"]
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&- >&-', "sh", *command],
        env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert (as_table.returncode, as_json.returncode) == (0, 0)
    assert "? Karambit" in as_table.stdout
    assert json.loads(as_json.stdout)["marketHashName"] == name
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.parametrize(
    "words", [("pause", "MAIN", "--reason", "odd"), ("resume", "MAIN"), ("same", "MAIN")]
)
def test_an_account_that_nobody_has_is_named_with_those_that_there_are(
    environment: dict[str, str], words: tuple[str, ...]
) -> None:
    another = "FULFILLMENT_ACCOUNTS__SECOND__"
    for name in ("CLIENT_ID", "CLIENT_SECRET"):
        environment[f"{another}{name}"] = "of-another-merchant"
    more = ("--reason", "I know it") if words[0] == "same" else ()

    done = run(environment, "accounts", *words, *more)

    told = "error: NAME: no account 'MAIN'; there are main, second\n"
    assert (done.returncode, done.stderr) == (1, told)


LONG = "x" * 501


@pytest.mark.parametrize(
    "words",
    [
        ("accounts", "pause", "main"),
        ("accounts", "resume", "main"),
        ("accounts", "same", "main"),
        ("resolve", "order_1", "--as", "not-found"),
    ],
    ids=lambda words: words[1],
)
def test_a_reason_that_is_too_long_is_refused_by_name(
    environment: dict[str, str], words: tuple[str, ...]
) -> None:
    done = run(environment, *words, "--reason", LONG)

    told = "error: reason: expected at most 500 characters, found 501\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_text_of_any_length_is_shown_at_once(
    context: Context, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What highlights words looks at each of them from each of its characters on."""
    monkeypatch.setattr(reasons, "MOST_CHARACTERS", 100_000)  # as before there was a bound
    brakes.stop(context, "main", "a" * 100_000, "me@here")

    done = run(environment, "accounts", "resume", "main")

    assert done.returncode == 0
    assert "a" * 100 in done.stderr


#: What takes no byte: a full disk is like it.
FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("words", [("orders",), ("orders", "--json"), ("states",)])
def test_an_output_that_takes_no_more_is_told_in_one_line(
    environment: dict[str, str], words: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "fulfillment.cli", *words]
    environment["PYTHONUNBUFFERED"] = ""  # what is kept for the end fails as well
    with FULL.open("w") as full:
        done = subprocess.run(
            command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    told = "error: standard output takes no more: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_reader_that_has_seen_enough_is_no_reason_for_words(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "fulfillment.cli", "orders", "--json"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (1, "")


def test_what_is_refused_of_a_file_is_named_by_its_line(
    context: Context, environment: dict[str, str]
) -> None:
    good, known = checkout(), checkout(marketHashName="a\u2028b")
    lines = [
        json.dumps(good),
        "",
        "not JSON",
        json.dumps(known, ensure_ascii=False),
        json.dumps(known | {"expectedPrice": 1}),
        json.dumps({"externalId": "order_x"}),
        "[]",
    ]
    given = "\n".join(lines)

    environment["FULFILLMENT_BROKER_URL"] = ""
    done = run(environment, "checkout", "-", given=given)
    as_json = run(environment, "checkout", "-", "--json", given=given)

    assert (done.returncode, as_json.returncode) == (1, 1)
    assert done.stdout == "2 new, 0 known before, 4 refused\n"
    assert done.stderr.splitlines() == [
        "line 3: expected a JSON object; the body is not valid JSON",
        f"line 5: {known['externalId']}: externalId {known['externalId']} exists already with "
        "other content",
        "line 6: order_x: catalogItemId: Field required",
        "line 7: expected a JSON object, found a list",
    ]
    told = json.loads(as_json.stdout)
    assert [each["line"] for each in told if "error" in each] == [3, 5, 6, 7]
    assert len(rows(context, "SELECT 1 FROM orders")) == 2


@pytest.mark.parametrize("is_file", [False, True])
def test_a_text_as_windows_writes_it_is_taken(
    context: Context, environment: dict[str, str], tmp_path: Path, is_file: bool
) -> None:
    events = [checkout(), checkout()]
    text = "\ufeff" + "\r\n".join(json.dumps(event) for event in events) + "\r\n"
    file = tmp_path / "checkouts.jsonl"
    file.write_bytes(text.encode())

    words, given = (str(file), "") if is_file else ("-", text)
    more = {"PYTHONUTF8": "1", "FULFILLMENT_BROKER_URL": ""}
    done = run(environment | more, "checkout", words, given=given)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(rows(context, "SELECT 1 FROM orders")) == 2


@pytest.mark.parametrize("given", ["", "\ufeff", "\n \n"])
def test_a_file_that_has_nothing_in_it_is_said_to_be_empty(
    environment: dict[str, str], given: str
) -> None:
    done = run(environment | {"PYTHONUTF8": "1"}, "checkout", "-", given=given)

    told = "error: FILE: expected a JSON object, or one on each line; nothing came in\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
