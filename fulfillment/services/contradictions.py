"""What a report tells that is not what was asked for: another item, purchase or recipient. Pure.

What is not told is no difference: adapters tell as much as their provider does.
"""

import unicodedata
from collections.abc import Sequence

from fulfillment.store.models import Order
from schemas.enums import OrderStatus
from schemas.provider import OrderReport

ITEM, PURCHASE, RECIPIENT = "item", "purchase", "recipient"


def told_by(order: Order, report: OrderReport, partner: int | None) -> list[str]:
    """Name what the report contradicts, each beginning with its kind.

    `partner` is the recipient's number that was asked for, None where it is not known any more. A
    recipient's is a person's and not named.
    """
    found = []
    if is_of_another_item(order, report):
        found.append(f"{ITEM} {report.item_name or report.item_id}")
    if _differ(order.provider_reference, report.provider_reference):
        found.append(f"{PURCHASE} {report.provider_reference}")
    if _differ(partner, report.partner):
        found.append(RECIPIENT)
    return found


def not_told(order: Order, found: Sequence[str]) -> list[str]:
    """Give what is news of these.

    Where a person looks anyway, or nothing is left to stop, one of each kind is: a provider may
    name another purchase, or item, in each of its answers.
    """
    if order.status not in (OrderStatus.NEEDS_REVIEW, OrderStatus.COMPLETED):
        return [each for each in found if each not in order.contradictions]
    kinds = {each.split()[0] for each in order.contradictions}
    return [each for each in found if each.split()[0] not in kinds]


def left_open(order: Order, report: OrderReport, partner: int | None) -> list[str]:
    """Give what was contradicted before and the report does not set right, by telling the same
    thing as it was asked for."""
    set_right = {
        ITEM: bool(_told_items(report) & _own_items(order))
        and not is_of_another_item(order, report),
        PURCHASE: report.provider_reference is not None,
        RECIPIENT: None not in (partner, report.partner),
    }
    return [each for each in order.contradictions if not set_right[each.split()[0]]]


def why(order: Order, found: Sequence[str]) -> str:
    """Say it for a person."""
    return "the provider " + " and ".join(_said(order, *each.partition(" ")) for each in found)


def _said(order: Order, kind: str, _: str, what: str) -> str:
    if kind == ITEM:
        wanted = order.market_hash_name or order.catalog_item_id
        return f"has another item under this id: {what!r}, not {wanted!r}"
    if kind == PURCHASE:
        return f"names another purchase: {what}, not {order.provider_reference}"
    return "sends it to another recipient than asked"


def _differ(asked: object, told: object) -> bool:
    return None not in (asked, told) and asked != told


def is_of_another_item(order: Order, report: OrderReport) -> bool:
    """Say whether what was bought has another name than the order, or neither its id nor its name.

    An order may be of a name or of an id, so that either one alone proves nothing by differing,
    but for a name where the order's is known.
    """
    if report.item_name is None:
        return False
    if report.item_name and order.market_hash_name:
        is_same = report.item_name == order.market_hash_name  # as nearly always: no need to look
        return not is_same and _plain(report.item_name) != _plain(order.market_hash_name)
    if _told_items(report) & _own_items(order):
        return False
    return (report.item_id or order.market_hash_name) is not None


def _told_items(report: OrderReport) -> set[str]:
    return {_plain(each) for each in (report.item_id, report.item_name) if each}


def _own_items(order: Order) -> set[str]:
    names = (order.catalog_item_id, order.quoted_item_id, order.market_hash_name)
    return {_plain(each) for each in names if each}


def _plain(name: str) -> str:
    """Write a name so that spellings of it are equal: case, spaces, forms of one character."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
