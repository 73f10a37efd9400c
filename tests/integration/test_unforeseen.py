"""What nobody has foreseen in one checkout stops that one alone; a database that says no, none."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import SimpleNamespace

import psycopg
import pytest
from structlog.testing import capture_logs

from fulfillment.errors import InvalidInput, ServerUnreachable
from fulfillment.services import intake, operations
from fulfillment.services.context import Context
from fulfillment.store import orders
from fulfillment.store.engine import Session
from fulfillment.store.models import NewOrder
from fulfillment.web import metrics
from schemas.checkout import CheckoutEvent
from schemas.enums import OrderStatus as S
from tests.integration.web_client import Store, error_of
from tests.support import (
    FakeClock,
    FakeProvider,
    again,
    checkout,
    receive_one,
    rows,
    run_chain,
    run_sweep,
)

#: A checkout under this id is one that we fail at.
ODD = "odd"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no tracebacks: where a test here fails, those of all its answers take minutes."""
    monkeypatch.setattr(metrics, "log", SimpleNamespace(exception=lambda *_, **_more: None))


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the intake fail at the odd one, before anything is stored."""
    new_order = intake._new_order

    def failing(context: Context, event: CheckoutEvent, latest: datetime) -> NewOrder:
        if event.external_id == ODD:
            raise OverflowError("canary-detail")
        return new_order(context, event, latest)

    monkeypatch.setattr(intake, "_new_order", failing)


def refuse(monkeypatch: pytest.MonkeyPatch, error: psycopg.Error) -> None:
    """Have the database refuse whatever comes together with the odd one."""
    insert = orders.insert

    def refusing(
        session: Session, new: Sequence[NewOrder], now: datetime, told_from: int | None
    ) -> tuple[set[str], int | None]:
        if any(each.external_id == ODD for each in new):
            raise error
        return insert(session, new, now, told_from)

    monkeypatch.setattr(orders, "insert", refusing)


def stored(context: Context) -> list[str]:
    return [row["external_id"] for row in rows(context, "SELECT external_id FROM orders")]


@pytest.mark.parametrize("place", [0, 4, 8])
@pytest.mark.usefixtures("bug")
def test_a_checkout_that_we_fail_at_is_refused_and_stops_no_other(
    context: Context, place: int
) -> None:
    raws = [checkout(externalId=ODD if n == place else f"order_{n}") for n in range(9)]

    with capture_logs() as logs:
        results = intake.receive_raw(context, raws)

    odd = results.pop(place)
    assert isinstance(odd.error, InvalidInput)
    assert "canary" not in str(odd.error)
    assert {(result.status, result.error) for result in results} == {(S.RECEIVED, None)}
    assert len(stored(context)) == 8
    assert ODD not in stored(context)
    told = {"event": "order.set_aside", "order_id": ODD, "reason": "OverflowError"}
    assert [{name: line[name] for name in told} for line in logs] == [told]


def test_a_checkout_that_the_database_cannot_hold_is_refused_alone(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, psycopg.errors.UntranslatableCharacter("canary-detail"))

    odd, good = intake.receive_raw(context, [checkout(externalId=ODD), checkout()])

    assert isinstance(odd.error, InvalidInput)
    assert (good.is_new, good.error) == (True, None)


@pytest.mark.parametrize("kind", ["InsufficientPrivilege", "DiskFull", "RaiseException"])
def test_where_the_database_refuses_service_all_checkouts_are_kept_for_later(
    context: Context, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Refused one by one, each of them would be lost to the store by what is no fault of its."""
    raws = [checkout(externalId=ODD), *(checkout() for _ in range(4))]
    with monkeypatch.context() as patched:
        refuse(patched, getattr(psycopg.errors, kind)("refused"))
        with pytest.raises((psycopg.Error, ServerUnreachable)):
            intake.receive_raw(context, raws)
    before = stored(context)

    results = intake.receive_raw(context, raws)

    assert before == []
    assert [result.is_new for result in results] == [True] * 5


@pytest.mark.parametrize("read", ["quote", "wallet_mills"])
def test_an_answer_that_we_fail_at_is_an_outage_of_its_account(
    context: Context, provider: FakeProvider, clock: FakeClock, read: str
) -> None:
    order = receive_one(context)

    def failing(*_: object) -> None:
        raise TypeError("canary-detail")

    setattr(provider, read, failing)
    with capture_logs() as logs:
        run_chain(context)
    (wallet,) = operations.wallets(context)
    delattr(provider, read)
    clock.advance(60)
    run_sweep(context)

    assert wallet.paused_until is not None
    assert [line["what"] for line in logs if line["event"] == "answer.set_aside"]
    assert "canary" not in str(logs)
    assert again(context, order).status is S.ACCEPTED


@pytest.mark.usefixtures("bug")
def test_checkouts_that_come_at_once_with_one_that_we_fail_at_are_answered_as_if_alone(
    store: Store,
) -> None:
    events = [checkout(externalId=ODD if n % 6 == 0 else f"order_{n}") for n in range(12)]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(store.post, events))

    odd = answers[::6]
    good = [answer for n, answer in enumerate(answers) if n % 6]
    assert {error_of(answer, 422)["code"] for answer in odd} == {"invalid"}
    assert "canary" not in odd[0].text
    assert [answer.status_code for answer in good] == [202] * len(good)


def test_checkouts_that_come_at_once_with_an_account_that_is_no_text_are_answered_as_if_alone(
    store: Store,
) -> None:
    known = checkout()
    store.post(known)
    odd = json.dumps(known | {"account": "\ud800"}).encode()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(store.post, [checkout() if n % 6 else odd for n in range(12)]))

    good = [answer for n, answer in enumerate(answers) if n % 6]
    assert {error_of(answer, 422)["field"] for answer in answers[::6]} == {"account"}
    assert [answer.status_code for answer in good] == [202] * len(good)
