"""The real servers that a person may name for the tests, and places of their own on them."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.engine import make_url

from fulfillment.settings import PREFIX


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
