"""What comes over a connection of web beside heads and bodies, and what is left of it."""

from tests.integration.web_client import BEARER, Store, exchange, news, signed
from tests.support import checkout

CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"


def test_a_trailer_is_no_header(store: Store) -> None:
    store.post(checkout(externalId="order_1"))
    body = news("order_1")
    for path, proof in (("/v1/checkouts", BEARER), ("/webhooks/main", signed(body))):
        chunk = b"\r\n%x\r\n%b\r\n" % (len(body), body)
        trailers = "".join(f"{name}: {value}\r\n" for name, value in proof.items()).encode()

        # In one piece with the head: whoever reads the headers then finds all that ever come.
        answer = exchange(store, CHUNKED % path.encode() + chunk + b"0\r\n" + trailers + b"\r\n")

        assert answer.startswith(b"HTTP/1.1 401"), path
