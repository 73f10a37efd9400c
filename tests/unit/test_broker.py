"""An address of the broker that kombu cannot use is a wrong setting, and no stack trace."""

import pytest
from pydantic import SecretStr

from fulfillment import broker
from fulfillment.devstack.stack import _probe_broker
from fulfillment.errors import ConfigurationError
from fulfillment.settings import Settings

CANARY = "canary-value-1234"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{CANARY}@127.0.0.1:1/0?socket_timeout={CANARY}",
        f"redis+socket:///nowhere/redis.sock?{CANARY}=1",
        f"rediss://127.0.0.1:1/0?ssl_cert={CANARY}",
        f"redis://127.0.0.1:1/0?credential_provider={CANARY}",
        f"amqp://u:{CANARY}@127.0.0.1:1//?heartbeat={CANARY}",
    ],
)
def test_an_address_with_an_option_that_means_nothing_is_told_in_one_line(
    url: str,
) -> None:
    settings = Settings(_env_file=None, broker_url=SecretStr(url))

    told = broker.complaint(settings)
    for check in (broker.require_access, _probe_broker):
        with pytest.raises(ConfigurationError, match="FULFILLMENT_BROKER_URL: ") as refused:
            check(settings)
        told += str(refused.value)

    assert "means nothing" in told
    assert CANARY not in told


def test_a_hint_that_cannot_be_sent_at_all_is_lost_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(broker.app, "send_task", fail)
    monkeypatch.setattr(broker, "_silent_until", 0.0)

    assert broker.hint("checkout.dispatch", "main") is False
