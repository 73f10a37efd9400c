"""Webhooks as whoever hates us sends them, in every provider's scheme, to the running web.

Never a 5xx for bad input, never an effect, no growth.
"""

import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from sqlmodel import SQLModel

from fulfillment.providers.signing import hmac_hex
from fulfillment.services.context import Context
from fulfillment.simulator.skinslink_words import sign
from tests.conftest import MakeContext
from tests.integration.web_client import API_TOKEN, Store, news, serving, signed
from tests.support import checkout, rows, run_sweep

SECRET = "canary-client-secret"
OLD, NEW = "canary-secret-before", "canary-secret-after"
NODE, BACK, LINK = DIALECTS = ("skinsnode", "skinsback", "skinslink")
#: Where the signature of each scheme stands.
SIGNATURE = {NODE: "x-signature", BACK: "signature", LINK: "sign"}


@dataclass(frozen=True)
class Delivery:
    """One webhook as it is put on the wire."""

    account: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def signature(self) -> str:
        name = SIGNATURE[self.account]
        found = json.loads(self.body)[name] if self.account == LINK else dict(self.headers)[name]
        return str(found)

    def with_signature(self, value: str) -> "Delivery":
        name = SIGNATURE[self.account]
        if self.account == LINK:
            return replace(self, body=json.dumps({**json.loads(self.body), name: value}).encode())
        return replace(self, headers=tuple((k, value if k == name else v) for k, v in self.headers))

    def with_body(self, body: bytes) -> "Delivery":
        return replace(self, body=body)


def genuine(account: str, external_id: str, word: str = "", secret: str = SECRET) -> Delivery:
    """Write what the provider would send about an order."""
    if account == NODE:
        body = news(external_id, word or "completed")
        return Delivery(account, tuple(signed(body, secret=secret).items()), body)
    number = 1 + int(hashlib.sha256(external_id.encode()).hexdigest()[:8], 16)
    if account == BACK:
        about = {"buy_id": number, "offer_status": word or "accepted", "custom_id": external_id}
        body = json.dumps({"event": "status_change", "data": about}).encode()
        return Delivery(account, (("signature", hmac_hex(secret, body)),), body)
    hint = {"purchase_id": number, "status": word or "completed", "merchant_tx_id": external_id}
    return Delivery(account, (), json.dumps({"sign": sign(number, secret), **hint}).encode())


def accounts(secret: str = SECRET, previous: str = "") -> dict[str, Any]:
    shared = {"client_id": "cid", "client_secret": secret, "previous_secret": previous}
    return {
        name: shared | {"provider": name, "api_key": "canary-key", "base_url": "http://127.0.0.1:9"}
        for name in DIALECTS
    }


@pytest.fixture
def context(make_context: MakeContext) -> Context:
    return make_context(api_token=API_TOKEN, accounts=accounts())


@pytest.fixture
def store(context: Context) -> Iterator[Store]:
    with serving(context) as found:
        yield found


@pytest.fixture(params=DIALECTS)
def account(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def send(store: Store, delivery: Delivery) -> httpx.Response:
    headers = [(k.encode(), v.encode("latin-1", "replace")) for k, v in delivery.headers]
    path = f"/webhooks/{delivery.account}"
    return store.client.post(path, content=delivery.body, headers=headers)


def everything(context: Context) -> dict[str, list[Any]]:
    """Give all that is in the database, but for when things were last seen to turn."""
    names = [table.name for table in SQLModel.metadata.sorted_tables if table.name != "heartbeats"]
    return {name: rows(context, f"SELECT t::text FROM {name} t ORDER BY 1") for name in names}


def size(context: Context) -> dict[str, int]:
    return {name: len(found) for name, found in everything(context).items()}


Hostile = Callable[[Delivery], Delivery]


def _doubled_key(delivery: Delivery) -> Delivery:
    return delivery.with_body(delivery.body[:-1] + b', "status": "completed", "status": "x"}')


def _digest(delivery: Delivery, digest: str) -> Delivery:
    made = hmac.new(SECRET.encode(), delivery.body, digest).hexdigest()
    return delivery.with_signature(made)


#: Every one of these is refused whatever the scheme.
FORGED: dict[str, Hostile] = {
    "signed with another key": lambda d: genuine(d.account, "order_1", secret="x"),
    "signed with no key": lambda d: genuine(d.account, "order_1", secret=""),
    "signed with the token of the API": lambda d: genuine(d.account, "order_1", secret=API_TOKEN),
    "the signature of another delivery": lambda d: d.with_signature(
        genuine(d.account, "order_2", "sent").signature
    ),
    "no signature": lambda d: d.with_signature(""),
    "the first half of it": lambda d: d.with_signature(d.signature[: len(d.signature) // 2]),
    "one character less": lambda d: d.with_signature(d.signature[:-1]),
    "one character more": lambda d: d.with_signature(d.signature + "0"),
    "twice": lambda d: d.with_signature(d.signature * 2),
    "another first character": lambda d: d.with_signature(
        ("1" if d.signature[0] == "0" else "0") + d.signature[1:]
    ),
    "another last character": lambda d: d.with_signature(d.signature[:-2] + "!" + d.signature[-1]),
    "upper case": lambda d: d.with_signature(
        d.signature.upper() if d.signature != d.signature.upper() else d.signature.lower()
    ),
    "zeros": lambda d: d.with_signature("0" * len(d.signature)),
    "no hex": lambda d: d.with_signature("z" * 64),
    "not ASCII": lambda d: d.with_signature("é" * 64),
    "in quotes": lambda d: d.with_signature(f'"{d.signature}"'),
    "with the word sha256": lambda d: d.with_signature(f"sha256={d.signature}"),
    "very long": lambda d: d.with_signature("a" * 8_000),
    "a percent sign": lambda d: d.with_signature("%s%n%x"),
    "an injection": lambda d: d.with_signature("' OR 1=1 --"),
    "another digest": lambda d: _digest(d, "sha1"),
    "a fixed MD5": lambda d: d.with_signature(
        hashlib.md5(f"cid{SECRET}".encode(), usedforsecurity=False).hexdigest()
    ),
    "empty": lambda d: d.with_body(b""),
    "no JSON": lambda d: d.with_body(b"\xff\xfe\x00"),
    "zeros for a body": lambda d: d.with_body(b"\x00" * 60_000),
    "deep": lambda d: d.with_body(b"[" * 60_000),
    "a key that stands twice": _doubled_key,
    "cut": lambda d: d.with_body(d.body[:-1]),
    "another account's": lambda d: replace(d, account=DIALECTS[DIALECTS.index(d.account) - 1]),
}
#: These too, where the signature covers the body.
ALTERED: dict[str, Hostile] = {
    "a byte order mark": lambda d: d.with_body(b"\xef\xbb\xbf" + d.body),
    "a blank at its end": lambda d: d.with_body(d.body + b" "),
    "serialised anew": lambda d: d.with_body(json.dumps(json.loads(d.body), indent=1).encode()),
    "keys in another order": lambda d: d.with_body(
        json.dumps(dict(reversed(json.loads(d.body).items()))).encode()
    ),
    "another word": lambda d: d.with_body(d.body.replace(b"e", b"E", 1)),
    "two signatures": lambda d: replace(d, headers=d.headers + d.headers),
    "two signatures, one of them wrong": lambda d: replace(
        d, headers=(*d.headers, (SIGNATURE[d.account], "0" * 64))
    ),
    "no headers": lambda d: replace(d, headers=()),
    "a signature under another name": lambda d: replace(
        d, headers=tuple((f"x-{k}", v) for k, v in d.headers)
    ),
}


def test_what_is_forged_or_altered_is_refused_and_leaves_nothing(
    context: Context, store: Store, account: str, subtests: pytest.Subtests
) -> None:
    for name in ("order_1", "order_2"):
        store.post(checkout(externalId=name, account=account))
    before = everything(context)
    good = genuine(account, "order_1")
    table = FORGED if account == LINK else FORGED | ALTERED

    for name, change in table.items():
        with subtests.test(name):
            answer = send(store, change(good))
            assert answer.status_code == 401, answer.text
            assert not [s for s in (SECRET, API_TOKEN, "canary") if s in answer.text]
    for place in range(len(good.body)) if account != LINK else ():
        flipped = bytearray(good.body)
        flipped[place] ^= 1
        assert send(store, good.with_body(bytes(flipped))).status_code == 401

    assert everything(context) == before
    assert send(store, good).json() == {"status": "stored"}


#: Well signed, by a provider gone mad: still no error of ours.
ODD_BODIES = [
    b"[]",
    b"null",
    b"7",
    b'"text"',
    b"{}",
    b'{"event": 7}',
    b'{"event": "x", "data": []}',
    b'{"event": "x", "data": {"buy_id": -1, "custom_id": "a\\u0000b"}}',
    b'{"event": "x", "data": {"buy_id": 1e400}}',
    b'{"event": "x", "data": {"buy_id": "\\ud800"}}',
    b'{"event": "x", "data": {"buy_id": ' + b"9" * 4000 + b"}}",
    b'{"externalId": "\\ud800"}',
    b'{"externalId": "../wallet"}',
    b'{"externalId": ' + b"9" * 5000 + b"}",
    b'{"externalId": "nobody", "status": {"a": [1]}}',
    b'{"externalId": "nobody", "externalId": "order_1"}',
    # As long as a body may be: no pattern may take quadratic time over it.
    *(news("nobody", status=word * (60_000 // len(word))) for word in ("x", "a.", "token=")),
]


def test_well_signed_nonsense_is_no_error_of_ours_and_leaves_nothing(
    context: Context, store: Store
) -> None:
    store.post(checkout(externalId="order_1", account=NODE))
    before = everything(context)

    for body in ODD_BODIES:
        node = Delivery(NODE, tuple(signed(body).items()), body)
        back = Delivery(BACK, (("signature", hmac_hex(SECRET, body)),), body)
        for delivery in (node, back):
            answer = send(store, delivery)
            assert answer.status_code in (200, 400), (body, answer.text)
            assert answer.status_code == 400 or answer.json() == {"status": "unknown_order"}
    for number in (-1, 0, 2**63, 10**400, 1.5, "1", None, True, [1]):
        body = json.dumps({"sign": sign(1, SECRET), "purchase_id": number}).encode()
        assert send(store, Delivery(LINK, (), body)).status_code == 401

    assert everything(context) == before


def test_an_order_that_nobody_knows_leaves_nothing_however_often_it_is_sent(
    context: Context, store: Store, account: str
) -> None:
    other = DIALECTS[DIALECTS.index(account) - 1]
    store.post(checkout(externalId="order_1", account=other))
    before = everything(context)

    for name in (*(f"unknown_{n}" for n in range(30)), "order_1"):
        assert send(store, genuine(account, name)).json() == {"status": "unknown_order"}

    assert everything(context) == before


def test_fifty_copies_at_once_under_fifty_delivery_ids_are_one(
    context: Context, store: Store, account: str
) -> None:
    store.post(checkout(externalId="order_1", account=account))
    good = genuine(account, "order_1")
    before = size(context)

    def copy(number: int) -> str:
        unsigned = ("x-delivery-id", f"d-{number}"), ("x-request-id", str(number))
        return str(send(store, replace(good, headers=good.headers + unsigned)).json()["status"])

    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(copy, range(50)))

    assert sorted(verdicts) == ["known"] * 49 + ["stored"]
    after = size(context)
    assert after.pop("webhook_deliveries") == before.pop("webhook_deliveries") + 1
    assert after == before


def test_what_may_be_varied_without_the_key_makes_no_new_deliveries(
    context: Context, store: Store
) -> None:
    store.post(checkout(externalId="order_1", account=LINK))
    document = json.loads(genuine(LINK, "order_1", "completed").body)

    for number in range(40):
        varied = {**document, "status": f"word-{number}", "trade_id": number, "x": "y" * number}
        assert send(store, Delivery(LINK, (), json.dumps(varied).encode())).status_code == 200
    run_sweep(context)

    assert size(context)["webhook_deliveries"] == 1
    assert rows(context, "SELECT status FROM orders") == [{"status": "received"}]


def test_during_a_rotation_under_load_no_true_delivery_is_lost(
    make_context: MakeContext, account: str
) -> None:
    before = make_context(api_token=API_TOKEN, accounts=accounts(OLD))
    rotating = make_context(api_token=API_TOKEN, accounts=accounts(NEW, previous=OLD))
    after = make_context(api_token=API_TOKEN, accounts=accounts(NEW))
    with ExitStack() as stack:
        webs = [stack.enter_context(serving(each)) for each in (before, rotating, after)]
        events = [checkout(externalId=f"o{n}", account=account) for n in range(60)]
        assert webs[0].post(events, "/v1/checkouts/batch").status_code == 200

        def deliver(number: int) -> int:
            # The provider tries again until it hears a 2xx, from whichever web is asked then.
            secret = OLD if number < 30 else NEW
            delivery = genuine(account, f"o{number}", secret=secret)
            return [send(web, delivery).status_code for web in webs].count(200)

        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(deliver, range(60)))

    assert taken == [2] * 60  # before and rotating, or rotating and after
    assert len(rows(after, "SELECT 1 FROM webhook_deliveries")) == 60


PATHS = [
    b"/webhooks",
    b"/webhooks/",
    b"/webhooks//skinsnode",
    b"//webhooks/skinsnode",
    b"/webhooks/skinsnode/",
    b"/webhooks/SKINSNODE",
    b"/webhooks/skinsnode%00",
    b"/webhooks/skinsnode%2f..%2f..%2fv1%2forders",
    b"/webhooks/../webhooks/skinsnode/..",
    b"/webhooks/./skinsnode",
    b"/webhooks/%2e%2e/v1/checkouts",
    b"/webhooks/skinsnode;a=b",
    b"/webhooks/skinsnode%0d%0aX-Evil:%201",
    b"/webhooks/%ff%fe",
    b"/webhooks/__class__",
    b"/webhooks/" + b"a" * 7_000,
]


def test_tricks_with_the_path_lead_nowhere(context: Context, store: Store) -> None:
    store.post(checkout(externalId="order_1", account=NODE))
    before = everything(context)
    good = genuine(NODE, "order_1")
    lines = [f"{k}: {v}" for k, v in good.headers] + [f"Content-Length: {len(good.body)}"]
    head = "\r\n".join([" HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]).encode()

    for path in PATHS:
        with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
            connection.sendall(b"POST " + path + head + good.body)
            answer = connection.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 404 "), (path, answer)
            assert b"evil" not in answer.lower()

    assert everything(context) == before


def test_a_flood_of_forgeries_holds_up_no_true_delivery(context: Context, store: Store) -> None:
    names = [f"o{n}" for n in range(20)]
    events = [checkout(externalId=name, account=NODE) for name in names]
    store.post(events, "/v1/checkouts/batch")
    forged = genuine(NODE, "o1", secret="x")

    with ThreadPoolExecutor(24) as pool:
        flood = [pool.submit(send, store, forged) for _ in range(1200)]
        slowest = 0.0
        for name in names:
            answer = send(store, genuine(NODE, name))
            assert answer.json() == {"status": "stored"}
            slowest = max(slowest, answer.elapsed.total_seconds())
        refused = {answer.result().status_code for answer in flood}

    assert slowest < 10
    assert refused == {401, 429}
    assert len(rows(context, "SELECT 1 FROM webhook_deliveries")) == len(names)
