"""Which item a report is about: another one than the order's is never adopted."""

from typing import Any

import pytest

from fulfillment.services.decide import Decision
from schemas.enums import OrderStatus as S
from schemas.provider import ReportState as R
from tests.support import report
from tests.unit.test_decide import decided

OTHER: dict[str, Any] = {"item_id": "999", "item_name": "Sticker | Other"}


@pytest.mark.parametrize("word", list(R))
def test_another_item_is_never_adopted_and_told_once(word: R) -> None:
    said = report(word, charged_mills=1, **OTHER)
    wanted: dict[str, Any] = {
        "catalog_item_id": "7",
        "quoted_item_id": "8",
        "market_hash_name": "AWP",
    }

    first = decided(said, status=S.SUBMITTING, **wanted)
    late = decided(said, status=S.NEEDS_REVIEW, **wanted)
    known = decided(said, status=S.NEEDS_REVIEW, provider_status=said.raw_status, **wanted)

    assert first.target is late.target is S.NEEDS_REVIEW
    assert first.is_alarm
    assert "'Sticker | Other', not 'AWP'" in first.note
    assert first.changes == late.changes == {"provider_status": said.raw_status}
    assert first.money == late.money == ()
    assert known == Decision()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"catalog_item_id": "7"}, {"item_id": "7", "item_name": "AWP"}),
        ({"catalog_item_id": "AWP"}, {"item_id": "7", "item_name": "AWP"}),
        ({"catalog_item_id": "1", "quoted_item_id": "7"}, {"item_id": "7", "item_name": "AWP"}),
        ({"catalog_item_id": "1", "market_hash_name": "AWP"}, {"item_id": "7", "item_name": "AWP"}),
        # Too little is told to say that it is another item.
        ({"catalog_item_id": "AWP"}, {"item_id": "7"}),
        ({"catalog_item_id": "1", "market_hash_name": "AWP"}, {"item_id": "7"}),
        ({"catalog_item_id": "7"}, {"item_name": "AWP"}),
        ({"catalog_item_id": "7"}, {}),
    ],
)
def test_what_is_or_may_be_the_orders_own_item_is_adopted(
    wanted: dict[str, Any], told: dict[str, Any]
) -> None:
    assert decided(report(R.SENT, **told), status=S.SUBMITTING, **wanted).target is S.SENT


def test_another_name_than_the_known_one_is_enough() -> None:
    said = report(R.SENT, item_name="Sticker | Other")

    assert decided(said, status=S.SUBMITTING, market_hash_name="AWP").target is S.NEEDS_REVIEW
