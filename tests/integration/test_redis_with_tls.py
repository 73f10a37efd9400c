"""A broker with TLS has to show a certificate for its name: to us, to Celery and to stores."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from fulfillment import broker
from fulfillment.errors import ConfigurationError
from fulfillment.messaging import store_client
from fulfillment.settings import Settings
from tests.servers import redis_with_tls, write_certificate

#: A process of ours sends a hint, a store a checkout, and Flower counts queues. It is a process
#: because kombu pools connections by their address without its options.
PARTS = """
import asyncio, os
from flower.utils.broker import Broker
from fulfillment.broker import app, hint
from fulfillment.messaging.store_client import send_checkout

def send():
    return send_checkout(os.environ["FULFILLMENT_BROKER_URL"], {"externalId": "order_1"})

def count():
    url = app.connection(connect_timeout=1.0).as_uri(include_password=True)
    return asyncio.run(Broker(url, broker_use_ssl=app.conf.broker_use_ssl).queues(["celery"]))

for part in (lambda: hint("checkout.dispatch", "main"), send, count):
    try:
        print(bool(part()))
    except Exception as error:
        print("CERTIFICATE_VERIFY_FAILED" in str(error) and "refused", error)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    with redis_with_tls(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """Give a certificate for the same name that nobody shows."""
    return write_certificate(tmp_path)[0]


def settings(url: str) -> Settings:
    return Settings(_env_file=None, broker_url=SecretStr(url))


def run_parts(url: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARTS],
        env=os.environ | {"FULFILLMENT_BROKER_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return [line.split()[0] for line in done.stdout.splitlines() if line[0] in "TFr"]


def refused(server: tuple[int, Path], another: Path) -> dict[str, str]:
    """Give addresses of the server, none of which it has a good certificate for."""
    port, certificate = server
    return {
        "self-signed": f"rediss://localhost:{port}/0",
        "another's": f"rediss://localhost:{port}/0?ssl_ca_certs={another}",
        "IP address mismatch": f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}",
        "signed": f"rediss://localhost:{port}/0?ssl_cert_reqs=CERT_REQUIRED",
    }


def test_a_redis_whose_certificate_is_not_good_is_not_talked_to_and_named(
    server: tuple[int, Path], another: Path
) -> None:
    for why, url in refused(server, another).items():
        told = broker.complaint(settings(url))

        assert told.startswith("it shows a certificate that is not accepted"), why
        assert why in told or why == "another's"
        with pytest.raises(ConfigurationError, match="BROKER_URL: the broker shows a certificate"):
            broker.require_access(settings(url))
    assert run_parts(f"rediss://localhost:{server[0]}/0") == ["False", "refused", "refused"]


@pytest.mark.parametrize("how", ["ssl_ca_certs", "none", "CERT_NONE", "name"])
def test_a_good_certificate_is_accepted_and_a_bad_one_where_the_address_says_so(
    server: tuple[int, Path], how: str
) -> None:
    port, certificate = server
    url = {
        "ssl_ca_certs": f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}",
        "none": f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none",
        "CERT_NONE": f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=CERT_NONE",
        "name": f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}&ssl_check_hostname=false",
    }[how]

    assert broker.complaint(settings(url)) == ""
    broker.require_access(settings(url))
    assert run_parts(url) == ["True"] * 3


def test_the_next_address_of_several_is_looked_at_as_well(server: tuple[int, Path]) -> None:
    port, certificate = server
    good = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"
    url = f"{good};rediss://localhost:{port}/0"
    with broker.connect(settings(url)) as connection:
        connection.connect()
        connection.maybe_switch_next()

        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            connection.transport.establish_connection()


def test_over_amqps_the_certificate_has_to_be_for_the_hosts_name(
    server: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until TLS stands it does not matter which server it is with."""
    port, certificate = server
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    good, bad = f"amqps://localhost:{port}//", f"amqps://127.0.0.1:{port}//"
    with pytest.raises(OperationalError, match="IP address mismatch"):
        store_client.send_checkout(bad, {"externalId": "order_1"})

    assert "IP address mismatch" in broker.complaint(settings(bad))
    assert "certificate" not in broker.complaint(settings(good))


def test_tls_to_a_port_without_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rediss://127.0.0.1:{silent.getsockname()[1]}/0"

        assert "in TLS: is this port the one for TLS" in broker.complaint(settings(url))


def test_a_port_with_tls_that_is_met_without_is_told_as_that(server: tuple[int, Path]) -> None:
    told = broker.complaint(settings(f"redis://localhost:{server[0]}/0"))

    assert told.startswith("it hangs up: is this port the one for TLS")


def test_a_file_that_the_address_names_and_is_not_there_is_told(server: tuple[int, Path]) -> None:
    url = f"rediss://localhost:{server[0]}/0?ssl_ca_certs=/nowhere/canary.pem"

    told = broker.complaint(settings(url))

    assert told == "a file that the address names is not there"
