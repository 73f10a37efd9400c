"""An account either gets its adapter or an error that names the wrong setting."""

from typing import Any

import pytest

from fulfillment.errors import ConfigurationError
from fulfillment.providers import registry
from fulfillment.providers.base import AfterUnknown
from fulfillment.settings import AccountSettings
from schemas.enums import ProviderName

GOOD: dict[str, Any] = {"client_id": "me", "client_secret": "cs_secret"}


def test_an_account_gets_its_adapter() -> None:
    policies = {}
    for name in ProviderName:
        provider = registry.build("main", AccountSettings(**GOOD, provider=name, api_key="key"))
        policies[name] = provider.after_unknown
        provider.close()

    assert policies == {
        ProviderName.SKINSNODE: AfterUnknown.REPLAY,
        ProviderName.SKINSBACK: AfterUnknown.LOOKUP_THEN_REPLAY,
        ProviderName.SKINSLINK: AfterUnknown.LOOKUP_ONLY,
    }


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"client_id": ""}, "CLIENT_ID"),
        ({"client_secret": ""}, "CLIENT_SECRET"),
        ({"client_secret": "cs\nsecret"}, "CLIENT_SECRET"),
        ({"client_secret": "cs_sécret"}, "CLIENT_SECRET"),
        ({"client_secret": " cs_secret"}, "CLIENT_SECRET"),
        ({"provider": "skinslink"}, "API_KEY"),
        ({"base_url": "http://"}, "BASE_URL"),
        ({"base_url": "https://user:cs_secret@host"}, "BASE_URL"),
        ({"base_url": "https://host?key=cs_secret"}, "BASE_URL"),
        ({"base_url": "https://host:99999999"}, "BASE_URL"),
    ],
)
def test_a_wrong_setting_is_named_and_not_quoted(changes: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        registry.build("second", AccountSettings(**{**GOOD, **changes}))

    assert caught.value.setting == f"FULFILLMENT_ACCOUNTS__SECOND__{setting}"
    assert "cs_s" not in str(caught.value)


@pytest.mark.parametrize("name", list(ProviderName))
def test_a_provider_without_an_adapter_is_refused(
    name: ProviderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(registry.ADAPTERS, name)
    with pytest.raises(ConfigurationError, match="FULFILLMENT_ACCOUNTS__MAIN__PROVIDER"):
        registry.build("main", AccountSettings(provider=name, **GOOD))
