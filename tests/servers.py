"""The real servers that a person may name for the tests, and places of their own on them.

And a Redis with TLS, where this machine has one: the embedded one speaks none.
"""

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.engine import make_url

from fulfillment.settings import PREFIX
from tests.support import until


def server(name: str) -> str:
    """Give the address of a real server, or skip the test and say why."""
    url = os.environ.get(f"{PREFIX}TEST_{name}")
    if not url:
        pytest.skip(f"{PREFIX}TEST_{name} is not set: no real server to run this on")
    return url


def rabbitmqctl(*command: str) -> str | None:
    """Run rabbitmqctl; give what it said, or None where it could not."""
    program = shutil.which("rabbitmqctl")
    if program is None:
        return None
    result = subprocess.run(
        [program, *command], capture_output=True, check=False, timeout=60, text=True
    )
    return result.stdout if result.returncode == 0 else None


@contextmanager
def own_vhost(*options: str) -> Iterator[tuple[str, str]]:
    """Give RabbitMQ's address and a virtual host of this run's own; skip where there is none.

    Its name is empty where we may make none: then it is the one of the address, without `options`.
    """
    url = make_url(server("BROKER_URL"))
    name = f"fulfillment_test_{uuid.uuid4().hex[:12]}"
    if rabbitmqctl("add_vhost", name, *options) is None:
        yield url.render_as_string(hide_password=False), ""
        return
    try:
        user = url.username or "guest"
        done = rabbitmqctl("set_permissions", "--vhost", name, user, *[".*"] * 3)
        assert done is not None
        yield url.set(database=name).render_as_string(hide_password=False), name
    finally:
        rabbitmqctl("delete_vhost", name)


def write_certificate(home: Path, name: str = "localhost") -> tuple[Path, Path]:
    """Write a certificate that vouches for itself, for one host; give it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, key_file = home / "certificate.pem", home / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    nothing = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, nothing))
    return certificate, key_file


@contextmanager
def redis_with_tls(home: Path) -> Iterator[tuple[int, Path]]:
    """Give the port of a Redis with TLS on localhost, and its certificate, which is for that name.

    Skips where this machine's redis-server has no TLS, or there is none.
    """
    program = shutil.which("redis-server", path=f"/usr/bin:/usr/local/bin:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no redis-server is installed here: the embedded one has no TLS")
    certificate, key = write_certificate(home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "port": "0",
        "tls-port": str(port),
        "bind": "127.0.0.1",
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
        "save": "",
        "dir": str(home),
    }
    arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
    with (home / "redis.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or _listens(port))
        if process.poll() is not None:
            pytest.skip(f"{program} has no TLS")
        yield port, certificate
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
