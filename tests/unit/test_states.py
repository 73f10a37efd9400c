"""The transition table: what may follow what, and that the page about it is the same table."""

from itertools import product
from pathlib import Path

import pytest

from fulfillment import states
from fulfillment.errors import IllegalTransition
from schemas.enums import OrderStatus as S

PAGE = Path(__file__).parents[2] / "docs" / "states.md"

EARLY = {S.ACCEPTED, S.QUEUED, S.PROCESSING}
ENDS = {S.COMPLETED, S.FAILED, S.CANCELLED, S.EXPIRED, S.REVERSED}

# Written from DESIGN section 4 by hand, so that a slip in the table's own loops shows.
LEGAL: dict[S, set[S]] = {
    S.RECEIVED: {S.QUOTED, S.FAILED},
    S.QUOTED: {S.RESERVED, S.AWAITING_FUNDS, S.FAILED},
    S.AWAITING_FUNDS: {S.QUOTED, S.FAILED},
    S.RESERVED: {S.SUBMITTING, S.FAILED},
    S.SUBMITTING: EARLY | {S.PENDING, S.SENT, S.NEEDS_REVIEW} | ENDS,
    S.ACCEPTED: {S.QUEUED, S.PROCESSING, S.PENDING, S.SENT, S.NEEDS_REVIEW} | ENDS,
    S.QUEUED: {S.ACCEPTED, S.PROCESSING, S.PENDING, S.SENT, S.NEEDS_REVIEW} | ENDS,
    S.PROCESSING: {S.ACCEPTED, S.QUEUED, S.PENDING, S.SENT, S.NEEDS_REVIEW} | ENDS,
    S.PENDING: {S.SENT, S.NEEDS_REVIEW} | ENDS,
    S.SENT: {S.NEEDS_REVIEW} | ENDS,
    S.COMPLETED: {S.REVERSED},
    S.REVERSED: set(),
    S.FAILED: set(),
    S.CANCELLED: set(),
    S.EXPIRED: set(),
    S.NEEDS_REVIEW: EARLY | {S.PENDING, S.SENT} | ENDS,
}


@pytest.mark.parametrize(("source", "target"), list(product(S, S)))
def test_exactly_the_designed_edges_are_legal(source: S, target: S) -> None:
    assert states.is_legal(source, target) is (target in LEGAL[source])


@pytest.mark.parametrize(("source", "target"), [(S.SENT, S.PENDING), (S.FAILED, S.COMPLETED)])
def test_an_edge_that_the_table_lacks_is_a_bug_that_names_both_ends(source: S, target: S) -> None:
    with pytest.raises(IllegalTransition, match=f"{source} -> {target}"):
        states.check(source, target)


def test_the_one_exit_from_a_final_status_is_the_reversal_of_a_delivery() -> None:
    exits = {edge for edge in states.TRANSITIONS if edge[0] in states.FINAL}

    assert exits == {(S.COMPLETED, S.REVERSED)}


def test_no_edge_leads_back_to_a_lower_rank_but_out_of_waiting_for_funds() -> None:
    ranked = [e for e in states.TRANSITIONS if S.NEEDS_REVIEW not in e]

    back = {e for e in ranked if states.RANK[e[1]] < states.RANK[e[0]]}

    assert back == {(S.AWAITING_FUNDS, S.QUOTED)}


def test_nothing_local_follows_once_the_provider_has_the_order() -> None:
    at_provider = states.FOLLOWED | states.FINAL | {S.NEEDS_REVIEW}

    returns = {e for e in states.TRANSITIONS if e[0] in at_provider and e[1] in states.LOCAL}

    assert returns == set()


def test_every_status_is_of_exactly_one_kind() -> None:
    kinds = [states.FINAL, states.LOCAL, states.FOLLOWED, {S.NEEDS_REVIEW}]

    assert sorted(s for kind in kinds for s in kind) == sorted(S)


def test_every_edge_says_why() -> None:
    assert all(reason.strip() for reason in states.TRANSITIONS.values())


def test_the_page_is_rendered_from_the_table() -> None:
    assert PAGE.read_text() == states.render(), "run `fulfillment states > docs/states.md`"
