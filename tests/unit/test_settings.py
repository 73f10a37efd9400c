"""Settings: a wrong one is named with what was expected, and none of them shows a secret."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulfillment.devstack.stack import Stack
from fulfillment.errors import ConfigurationError
from fulfillment.log import masked
from fulfillment.services.context import check_accounts
from fulfillment.settings import RUNTIME_FILE, AccountSettings, Settings, load_settings

CANARY = "c4n4ry-s3cr3t"
Setter = Callable[..., None]


@pytest.fixture(autouse=True)
def _empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def setenv(monkeypatch: pytest.MonkeyPatch) -> Setter:
    """Set variables by their name behind the prefix."""

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"FULFILLMENT_{name}", value)

    return set_all


WRONG = [
    ("DATABASE_URL", f"mysql://u:{CANARY}@h/d", "postgresql://"),
    ("DATABASE_URL", CANARY, "postgresql://"),
    ("DATABASE_URL", f"postgresql://u:p@ss:{CANARY}@h/d", "percent-encoded"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}/x@h/d", "percent-encoded"),
    ("DATABASE_URL", f"postgresql://h:{CANARY}/d", "host:port"),
    ("BROKER_URL", f"amqp://u:{CANARY}/x@h//", "percent-encoded"),
    ("BROKER_URL", f"amqp://u:12/{CANARY}@h//", "percent-encoded"),
    ("BROKER_URL", f"redis://:{CANARY}#x@h/0", "redis://:password@host:port/0; what is special"),
    ("BROKER_URL", f"redis://:{CANARY}/x@h/0", "redis://:password@host:port/0; what is special"),
    ("BROKER_URL", f"redis://:{CANARY}:x@y@h/0", "redis://:password@host:port/0; what is special"),
    ("BROKER_URL", f"rediss://:{CANARY};x@h/0", "rediss://:password@host:port/0; what is special"),
    ("BROKER_URL", f"redis+socket://:{CANARY}/x@/s", "redis+socket:///path"),
    ("BROKER_URL", f"redis://:{CANARY}@127.0.0.1:70000/0", "a port from 1 to 65535"),
    ("BROKER_URL", f"redis://h:1/0;redis://:{CANARY}@h:70000/0", "a port from 1 to 65535"),
    ("BROKER_URL", f"amqp://u:{CANARY}@[::1]:99999//", "a port from 1 to 65535"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@h:1,h:65536/d", "a port from 1 to 65535"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@.internal:5432/d", "1 to 63 letters"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@h,db..example/d", "1 to 63 letters"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@{'a' * 64}.example/d", "1 to 63 letters"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@/d?host=.internal,h", "1 to 63 letters"),
    ("DATABASE_URL", f"postgresql://u:{CANARY}@/d?host=h&host=.i:5432", "1 to 63 letters"),
    ("BROKER_URL", f"rediss://h/0?ssl_cert_reqs={CANARY}", "required, optional, none"),
    ("BROKER_URL", "rediss://h/0;rediss://h/0?ssl_cert_reqs=Required", "required, optional, none"),
    ("BROKER_URL", "rediss://h/0?ssl_cert_reqs=", "required, optional, none"),
    ("BROKER_URL", "rediss://h/0?ssl_cert_reqs=required&ssl_cert_reqs=none", "required, optional"),
    ("BROKER_URL", f"amqps://u:{CANARY}@h/v?ssl=1", "amqps:// in place of the option ssl"),
    ("BROKER_URL", f"amqp://u:{CANARY}[@h//", "percent-encoded"),
    ("BROKER_URL", f"redis://:{CANARY}@h/{CANARY}", "a number"),
    ("BROKER_URL", f"rediss://:{CANARY}@h:1/-1?ssl_cert_reqs=none", "a number"),
    ("BROKER_URL", "redis://h/0;redis://h/x", "a number"),
    ("BROKER_URL", "redis+socket:///tmp/redis.sock?virtual_host=x", "a number"),
    ("BROKER_URL", f"kafka://u:{CANARY}@h", "amqp://"),
    ("PUBLIC_URL", "shop.example", "http"),
    ("WEB_PORT", "http", "integer"),
    ("WEB_PORT", "70000", "65535"),
    ("WEB_PORT", "-1", "0"),
    ("FLOWER_BASIC_AUTH", CANARY, "user:password"),
    ("FLOWER_BASIC_AUTH", f":{CANARY}", "user:password"),
    ("API_TOKENS", CANARY, "name:hash"),
    ("API_TOKENS", f"store:{CANARY}", "name:hash"),
    ("API_TOKENS", f"Store:{'a' * 64}", "name:hash"),
    ("API_TOKENS", f"store:{'a' * 64},store:{'b' * 64}", "name:hash"),
    ("WEB_CALLS_PER_S", "0", "1"),
    ("WEB_FAILURES_PER_S", "0", "1"),
    ("WEB_CALLS_PER_S", "9" * 400, "1000000"),
    ("WEB_FAILURES_PER_S", "1000001", "1000000"),
    ("DATA_DIR", "", "path of a directory"),
    ("DATA_DIR", " ", "path of a directory"),
    ("WEB_TRUSTED_PROXIES", "*", "IPv4 or IPv6"),
    ("WEB_TRUSTED_PROXIES", "10.0.0.0/8,proxy", "IPv4 or IPv6"),
    ("CLAIM_LEASE_S", "0", "1"),
    ("POLL_MIN_INTERVAL_S", "0", "0"),
    ("POLL_MIN_INTERVAL_S", "nan", "0"),
    ("WALLET_LAG_S", "-1", "0"),
    ("WALLET_LAG_S", "nan", "finite"),
    ("WALLET_LAG_S", "inf", "finite"),
    ("SUBMIT_WITHIN_S", "1h", "integer"),
    ("BATCH_LIMIT", "0", "1"),
    ("SPEND_CAP_CENTS_PER_HOUR", "0", "1"),
    ("LOG_LEVEL", "LOUD", "INFO"),
    ("LOG_FORMAT", "xml", "json"),
    ("ACCOUNTS__MAIN__PROVIDER", "skinsnod", "skinsnode"),
    ("ACCOUNTS__MAIN__BASE_URL", f"ftp://u:{CANARY}@h", "http"),
    ("ACCOUNTS__MAIN__TRADE_WINDOW_S", "0", "1"),
    ("ACCOUNTS__MAIN__RATE_PER_MINUTE", "1", "10"),
    ("ACCOUNTS__MAIN__SLIPPAGE_BPS", "-1", "0"),
    ("ACCOUNTS__MAIN__SLIPPAGE_CENTS", "1.5", "integer"),
    ("ACCOUNTS__MAIN__ON_INSUFFICIENT_FUNDS", "later", "wait"),
    ("ACCOUNTS__MAIN__MAX_SUBMITS_IN_FLIGHT", "0", "1"),
    ("ACCOUNTS__MAIN__DEBITS_AT", "never", "accept"),
    ("ACCOUNTS__MAIN__CHECK_RECIPIENT", "perhaps", "boolean"),
    ("ACCOUNTS__MAIN__REQUEST_TIMEOUT_S", "0", "0"),
    ("ACCOUNTS__MAIN__COLOUR", CANARY, "no such setting"),
    ("ROUTES__ANY", "", "separated by commas"),
    ("ROUTES__ANY", " ", "separated by commas"),
    ("ROUTES__ANY", "[]", "separated by commas"),
    ("ROUTES__ANY", "main,backup,main", "each once"),
    ("ROUTES__ANY", "main,,backup", "pattern"),
    ("ROUTES__ANY", "main;backup", "pattern"),
    ("ROUTES__ANY", "{}", "tuple"),
    ("ROUTES", "main,backup", "ROUTES__<NAME>"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_setting_is_named_with_what_was_expected(
    setenv: Setter, name: str, value: str, expected: str
) -> None:
    setenv(**{name: value})

    with pytest.raises(ConfigurationError) as error:
        load_settings()

    assert f"FULFILLMENT_{name}" in str(error.value)
    assert expected in str(error.value)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://h/d"),
        ("DATABASE_URL", "postgresql+psycopg://u:p%40s%2Fs@h:5432/d?sslmode=require"),
        ("DATABASE_URL", "postgresql://u:a:b$(c)@[::1]:5432/d"),
        ("DATABASE_URL", "postgresql:///d?host=/tmp/a@b"),
        ("DATABASE_URL", "postgresql://u@h1:1,h2:2,[::1]/d"),
        ("BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//"),
        ("BROKER_URL", "amqp://h"),
        ("BROKER_URL", "redis://:p@h:6379/7"),
        ("BROKER_URL", "redis://h"),
        ("BROKER_URL", "rediss://h//0?ssl_cert_reqs=none;redis://other:1/"),
        ("BROKER_URL", "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_cert_reqs=CERT_OPTIONAL"),
        ("BROKER_URL", "redis+socket:///tmp/redis.sock?virtual_host=2&health_check_interval=5"),
        ("BROKER_URL", "redis+socket:///tmp/with @ blank/redis.sock"),
    ],
)
def test_addresses_that_mean_one_thing_are_taken(setenv: Setter, name: str, value: str) -> None:
    setenv(**{name: value})

    assert getattr(load_settings(), name.lower()).get_secret_value() == value


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("rediss://h", "rediss://h?ssl_cert_reqs=required"),
        (" rediss://h/0\n", "rediss://h/0?ssl_cert_reqs=required"),
        ("rediss://h/0#?ssl_cert_reqs=none", "rediss://h/0?ssl_cert_reqs=required"),
        (
            "rediss://h/0?ssl_ca_certs=/ca.pem",
            "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required",
        ),
        (
            "redis://h/0;rediss://h/0?ssl_cert_reqs=none;rediss://h/0",
            "redis://h/0;rediss://h/0?ssl_cert_reqs=none;rediss://h/0?ssl_cert_reqs=required",
        ),
    ],
)
def test_a_redis_with_tls_has_to_show_its_certificate_unless_its_address_says_otherwise(
    setenv: Setter, value: str, read: str
) -> None:
    setenv(BROKER_URL=value)

    assert load_settings().broker_url.get_secret_value() == read


def test_no_secret_that_is_set_is_in_a_log_line(setenv: Setter) -> None:
    secrets = [f"{CANARY}-{number}" for number in range(8)]
    setenv(
        DATABASE_URL=f"postgresql://u:{secrets[0]}@h/d",
        BROKER_URL=f"amqp://u:{secrets[1]}@h//",
        API_TOKEN=secrets[2],
        FLOWER_BASIC_AUTH=f"admin:{secrets[3]}",
        ENCRYPTION_KEYS=f"id:{secrets[4]}",
        ACCOUNTS__MAIN__CLIENT_SECRET=secrets[5],
        ACCOUNTS__MAIN__PREVIOUS_SECRET=secrets[6],
        ACCOUNTS__MAIN__API_KEY=secrets[7],
    )
    load_settings()

    shown = masked(f"in any words: {'; '.join(secrets)}!")

    assert shown == f"in any words: {'; '.join(['***'] * 8)}!"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SPEND_CAP_CENTS_PER_HOURS", "SPEND_CAP_CENTS_PER_HOUR"),
        ("spend_cap_cent_per_hour", "SPEND_CAP_CENTS_PER_HOUR"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("STOP_AT_REVERSAL", "ACCOUNTS__<NAME>__STOP_AT_REVERSALS"),
        ("ACCOUNT__MAIN__CLIENT_ID", "ACCOUNTS__MAIN__CLIENT_ID"),
        ("ACCOUNTS_MAIN_CLIENT_ID", "ACCOUNTS__<NAME>__<SETTING>"),
        ("ACCOUNTS__MAIN__STOP_AT_REVERSAL", "ACCOUNTS__MAIN__STOP_AT_REVERSALS"),
        ("ROUTE_ANY", "ROUTES__<NAME>"),
        ("WEB_PORT__X", "WEB_PORT"),
        ("SIMULATOR_CLIENT_SECRETS", "SIMULATOR_CLIENT_SECRET"),
        ("COLOUR", None),
    ],
)
@pytest.mark.parametrize("is_in_file", [False, True], ids=["environment", "file"])
def test_a_name_that_no_setting_has_is_refused_with_the_one_that_was_meant(
    setenv: Setter, name: str, meant: str | None, is_in_file: bool
) -> None:
    if is_in_file:
        Path(".env").write_text(f"OTHER=1\nFULFILLMENT_{name}={CANARY}\n")
    else:
        setenv(**{name: CANARY})

    with pytest.raises(ConfigurationError, match=f"FULFILLMENT_{name.upper()}: no such") as error:
        load_settings()

    hint = f"(FULFILLMENT_{meant} was probably meant)"
    assert (hint in str(error.value)) if meant else ("meant" not in str(error.value))
    assert CANARY not in str(error.value)


def test_every_name_that_no_setting_has_is_told_at_once(setenv: Setter) -> None:
    Path(".env").write_text("FULFILLMENT_COLOUR=x\n")
    setenv(FLAVOUR="y", COLOUR="z")

    with pytest.raises(ConfigurationError) as error:
        load_settings()

    assert str(error.value) == (
        "FULFILLMENT_COLOUR: no such setting; FULFILLMENT_FLAVOUR: no such setting"
    )


def test_names_of_tests_and_simulators_may_stand_beside_the_settings(setenv: Setter) -> None:
    setenv(
        TEST_DATABASE_URL="x",
        TEST_ANYTHING="x",
        SIMULATOR_CLIENT_ID="x",
        SIMULATOR_CLIENT_SECRET="x",
        SIMULATOR_API_KEY="x",
        SIMULATOR_WEBHOOK_URL="x",
    )

    assert load_settings().web_port == 8080


def test_what_kubernetes_tells_of_a_service_of_our_name_is_no_setting(setenv: Setter) -> None:
    setenv(
        SERVICE_HOST="10.0.0.11",
        SERVICE_PORT="8080",
        SERVICE_PORT_HTTP="8080",
        PORT="tcp://10.0.0.11:8080",
        PORT_8080_TCP="tcp://10.0.0.11:8080",
        PORT_8080_TCP_ADDR="10.0.0.11",
    )

    assert load_settings().web_port == 8080


def test_what_another_version_wrote_into_the_runtime_file_is_no_fault() -> None:
    Path(".fulfillment").mkdir()
    Path(".fulfillment", RUNTIME_FILE).write_text("FULFILLMENT_OF_LATER=1\n")

    assert load_settings().web_port == 8080


@pytest.mark.parametrize("file", [".env", f".fulfillment/{RUNTIME_FILE}"])
def test_a_file_of_settings_that_is_no_utf_8_is_named(tmp_path: Path, file: str) -> None:
    Path(".fulfillment").mkdir()
    Path(file).write_bytes(f"FULFILLMENT_WEB_PORT=81\nX={CANARY}\xff\n".encode("latin-1"))

    with pytest.raises(ConfigurationError) as error:
        load_settings()

    assert str(error.value) == f"{tmp_path / file}: expected UTF-8; line 2 is not"


@pytest.mark.parametrize(
    "name",
    ["DATABASE_URL", "API_TOKEN", "WEB_HOST", "DATA_DIR", "ACCOUNTS", "ACCOUNTS__A__CLIENT_ID"],
)
@pytest.mark.parametrize("is_in_file", [False, True], ids=["environment", "file"])
def test_what_is_no_utf_8_is_named_and_not_shown(
    setenv: Setter, monkeypatch: pytest.MonkeyPatch, name: str, is_in_file: bool
) -> None:
    odd = f"{CANARY}\udcff"
    if is_in_file:  # which may take in what stands in the environment
        Path(".env").write_text(f"FULFILLMENT_{name}=x${{ODD}}\n")
        monkeypatch.setenv("ODD", odd)
    else:
        setenv(**{name: odd})

    with pytest.raises(ConfigurationError) as error:
        load_settings()

    where = ", in .env" if is_in_file else ""
    assert str(error.value) == f"FULFILLMENT_{name}: expected text in UTF-8{where}"


def test_the_name_of_an_account_that_is_no_utf_8_is_refused(setenv: Setter) -> None:
    setenv(**{"ACCOUNTS__A\udcff__CLIENT_ID": "x"})

    with pytest.raises(ConfigurationError, match="expected text in UTF-8"):
        load_settings()


def test_a_working_directory_that_is_gone_is_told_of_where_it_matters(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    settings = load_settings(database_url="postgresql://h/d")
    settings.require("database_url")

    with pytest.raises(ConfigurationError, match=r"FULFILLMENT_DATA_DIR: .*that is gone"):
        settings.require("broker_url")
    with pytest.raises(ConfigurationError, match="FULFILLMENT_DATA_DIR"):
        Stack(settings)
    with pytest.raises(ConfigurationError, match=f"is not set, and no stack .* {tmp_path}"):
        load_settings(data_dir=tmp_path).require("broker_url")


def test_an_empty_data_directory_in_the_file_is_named() -> None:
    Path(".env").write_text("FULFILLMENT_DATA_DIR=\n")

    with pytest.raises(ConfigurationError, match="FULFILLMENT_DATA_DIR: expected the path"):
        load_settings()


def test_a_setting_that_is_empty_is_not_told_as_one_that_is_not_set(setenv: Setter) -> None:
    Path(".fulfillment").mkdir()
    Path(".fulfillment", RUNTIME_FILE).write_text("FULFILLMENT_ENCRYPTION_KEYS='k1:x'\n")
    setenv(ENCRYPTION_KEYS="")

    with pytest.raises(ConfigurationError, match="FULFILLMENT_ENCRYPTION_KEYS: is empty"):
        load_settings().require("encryption_keys")


def test_every_wrong_setting_is_named_at_once(setenv: Setter) -> None:
    setenv(WEB_PORT="x", BATCH_LIMIT="0", ACCOUNTS__MAIN__PROVIDER="y")

    with pytest.raises(ConfigurationError) as error:
        load_settings()

    names = ("WEB_PORT", "BATCH_LIMIT", "ACCOUNTS__MAIN__PROVIDER")
    assert all(f"FULFILLMENT_{name}" in str(error.value) for name in names)


@pytest.mark.parametrize("name", ["with blank", "ä", "x" * 33, "-a", "a/b"])
def test_an_account_name_that_no_address_takes_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="ACCOUNTS"):
        load_settings(accounts={name: {}})


def test_accounts_that_are_no_table_are_refused_and_not_shown(setenv: Setter) -> None:
    setenv(ACCOUNTS=CANARY)

    with pytest.raises(ConfigurationError, match="FULFILLMENT_ACCOUNTS") as error:
        load_settings()

    assert CANARY not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCOUNTS__MAIN__BASE_URL", "http://[::1"),
        ("PUBLIC_URL", "https://[::1"),
        ("BROKER_URL", "redis://127.0.0.1:6379/0?password=cs_secret"),
        ("SUBMIT_WITHIN_S", "999999999999"),
        ("AWAIT_FUNDS_S", "1e300"),
        ("WALLET_LAG_S", "1e300"),
        ("LOOKUP_CACHE_S", "86401"),
    ],
)
def test_a_value_that_nothing_can_be_done_with_is_named(
    setenv: Setter, name: str, value: str
) -> None:
    setenv(**{name: value})

    with pytest.raises(ConfigurationError, match=name) as error:
        load_settings()

    assert "cs_secret" not in str(error.value)


def test_any_number_of_accounts_is_read_from_the_environment(setenv: Setter) -> None:
    setenv(
        ACCOUNTS__MAIN__CLIENT_ID="one",
        ACCOUNTS__SECOND__CLIENT_ID="two",
        ACCOUNTS__SECOND__PROVIDER="skinsback",
        ACCOUNTS__SECOND__TRADE_WINDOW_S="120",
    )

    settings = load_settings()

    assert {name: a.client_id for name, a in settings.accounts.items()} == {
        "main": "one",
        "second": "two",
    }
    assert settings.account("main").trade_window_s == 600
    assert settings.account("second").trade_window_s == 120


@pytest.mark.parametrize("value", ["main,backup", " main , backup ", '["main", "backup"]'])
def test_a_route_is_accounts_in_their_order(setenv: Setter, value: str) -> None:
    setenv(ROUTES__ANY=value, ROUTES__LONE="7")

    assert load_settings().routes == {"any": ("main", "backup"), "lone": ("7",)}


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ({"any": "main,elsewhere"}, "FULFILLMENT_ROUTES__ANY: no account elsewhere"),
        ({"main": "main"}, "FULFILLMENT_ROUTES__MAIN: expected a name that no account has"),
    ],
)
def test_a_route_needs_accounts_and_a_name_of_its_own(
    routes: dict[str, str], expected: str
) -> None:
    account = {"client_id": "one", "client_secret": "two"}
    settings = load_settings(accounts={"main": account}, routes=routes)

    with pytest.raises(ConfigurationError, match=expected):
        check_accounts(settings)


ACCOUNT = {"client_id": "one", "client_secret": CANARY}
LINK = {"provider": "skinslink", "client_secret": CANARY, "api_key": "key"}


@pytest.mark.parametrize(
    ("second", "setting"),
    [
        (ACCOUNT, "CLIENT_ID"),
        (ACCOUNT | {"base_url": "https://API.skinsnode.com/"}, "CLIENT_ID"),
        (ACCOUNT | {"base_url": "https://api.skinsnode.com:443"}, "CLIENT_ID"),
        (ACCOUNT | {"client_secret": "other"}, "CLIENT_ID"),
    ],
)
def test_two_accounts_of_one_wallet_are_refused(second: dict[str, str], setting: str) -> None:
    settings = load_settings(accounts={"main": ACCOUNT, "second": second})

    with pytest.raises(ConfigurationError, match="one wallet") as error:
        check_accounts(settings)

    assert all(f"__{name}__{setting}" in str(error.value) for name in ("MAIN", "SECOND"))
    assert CANARY not in str(error.value)


def test_two_accounts_with_one_api_key_are_refused_wherever_they_are() -> None:
    second = LINK | {"base_url": "http://proxy/api/v1", "api_key": "key-canary"}
    settings = load_settings(accounts={"main": LINK | {"api_key": "key-canary"}, "second": second})

    with pytest.raises(ConfigurationError, match="MAIN__API_KEY") as error:
        check_accounts(settings)

    assert "SECOND__API_KEY" in str(error.value)
    assert "key-canary" not in str(error.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ACCOUNT, ACCOUNT | {"client_id": "two"}),
        (ACCOUNT, ACCOUNT | {"provider": "skinsback"}),
        (ACCOUNT | {"base_url": "http://sim/a"}, ACCOUNT | {"base_url": "http://sim/b"}),
        (LINK, LINK | {"api_key": "other"}),
        (LINK, ACCOUNT | {"api_key": "key"}),
    ],
)
def test_accounts_of_different_wallets_are_taken(
    first: dict[str, str], second: dict[str, str]
) -> None:
    check_accounts(load_settings(accounts={"main": first, "second": second}))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, ()),
        ({"client_secret": "new", "previous_secret": "old", "api_key": "new"}, ()),
        ({"base_url": "https://API.skinsnode.com/"}, ()),
        ({"client_id": ""}, ()),
        ({"client_id": "two"}, ("CLIENT_ID",)),
        ({"base_url": "http://proxy/node"}, ("BASE_URL",)),
        ({"provider": "skinsback", "client_id": "two"}, ("PROVIDER", "BASE_URL", "CLIENT_ID")),
    ],
)
def test_a_merchant_is_known_by_provider_address_and_client_id(
    change: dict[str, str], names: tuple[str, ...]
) -> None:
    settings = load_settings(accounts={"old": ACCOUNT, "new": ACCOUNT | change})
    merchant = settings.account("old").merchant

    assert settings.account("new").changed_since(merchant) == names
    assert "one" not in merchant
    assert CANARY not in merchant


def test_an_account_that_is_not_configured_is_named() -> None:
    with pytest.raises(ConfigurationError, match="FULFILLMENT_ACCOUNTS__THIRD__PROVIDER"):
        load_settings().account("third")


def test_the_defaults_are_the_documented_ones() -> None:
    settings = load_settings()

    assert {
        "web": (settings.web_host, settings.web_port),
        "flower": (settings.flower_port, settings.flower_read_only),
        "lease": settings.claim_lease_s,
        "poll": settings.poll_min_interval_s,
        "tolerance": settings.webhook_tolerance_s,
        "funds": settings.await_funds_s,
        "lag": settings.wallet_lag_s,
        "submit": settings.submit_within_s,
        "batch": settings.batch_limit,
    } == {
        "web": ("127.0.0.1", 8080),
        "flower": (5555, True),
        "lease": 30,
        "poll": 30,
        "tolerance": 3600,
        "funds": 900,
        "lag": 35,
        "submit": 3600,
        "batch": 64,
    }
    account = AccountSettings()
    assert account.url == "https://api.skinsnode.com"
    assert account.price_limit_cents(1840) == 1840
    assert (account.max_submits_in_flight, account.on_insufficient_funds) == (32, "wait")
    assert (account.debits_at, account.check_recipient) == ("accept", False)


@pytest.mark.parametrize(
    ("bps", "cents", "limit"), [(0, 0, 1840), (100, 0, 1858), (0, 5, 1845), (100, 20, 1860)]
)
def test_slippage_is_rounded_down_and_the_wider_of_the_two_counts(
    bps: int, cents: int, limit: int
) -> None:
    account = AccountSettings(slippage_bps=bps, slippage_cents=cents)

    assert account.price_limit_cents(1840) == limit


def settings_full_of_secrets() -> Settings:
    return load_settings(
        database_url=f"postgresql://app:{CANARY}@db/x",
        broker_url=f"amqp://app:{CANARY}@mq//",
        api_token=CANARY,
        flower_basic_auth=f"admin:{CANARY}",
        encryption_keys=f"k:{CANARY}",
        accounts={"main": {"client_secret": CANARY, "previous_secret": CANARY, "api_key": CANARY}},
    )


@pytest.mark.parametrize("show", [repr, str, lambda s: s.model_dump_json(), lambda s: f"{s!s}"])
def test_settings_show_no_secret(show: Callable[[Settings], str]) -> None:
    settings = settings_full_of_secrets()

    assert CANARY not in show(settings)


def test_a_missing_setting_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="FULFILLMENT_DATABASE_URL") as error:
        load_settings().require("database_url", "broker_url")

    assert "fulfillment up" in str(error.value)


def test_what_a_person_set_wins_over_the_file_and_the_running_stack(
    setenv: Setter, tmp_path: Path
) -> None:
    (tmp_path / ".fulfillment").mkdir()
    lines = [f"FULFILLMENT_{name}=stack" for name in ("PUBLIC_URL", "WEB_HOST", "LOG_LEVEL")]
    text = "\n".join(lines).replace("PUBLIC_URL=stack", "PUBLIC_URL=http://stack")
    (tmp_path / ".fulfillment" / RUNTIME_FILE).write_text(
        text.replace("LEVEL=stack", "LEVEL=ERROR")
    )
    (tmp_path / ".env").write_text("FULFILLMENT_WEB_HOST=file\nFULFILLMENT_LOG_LEVEL=DEBUG\n")
    setenv(LOG_LEVEL="WARNING")

    settings = load_settings()

    assert settings.public_url == "http://stack"
    assert settings.web_host == "file"
    assert settings.log_level == "WARNING"


def test_accounts_of_several_sources_are_merged_field_by_field(
    setenv: Setter, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("FULFILLMENT_ACCOUNTS__MAIN__CLIENT_ID=file\n")
    setenv(ACCOUNTS__MAIN__TRADE_WINDOW_S="60")

    account = load_settings().account("main")

    assert (account.client_id, account.trade_window_s) == ("file", 60)


@pytest.mark.parametrize(
    ("secret", "previous", "usable"),
    [("new", "old", ("new", "old")), ("new", None, ("new",)), ("", "old", ("old",)), ("", "", ())],
)
def test_an_empty_webhook_secret_never_counts(
    secret: str, previous: Any, usable: tuple[str, ...]
) -> None:
    account = AccountSettings.model_validate({"client_secret": secret, "previous_secret": previous})

    assert account.webhook_secrets == usable


def test_a_slash_at_the_end_of_an_address_does_not_matter() -> None:
    settings = load_settings(
        public_url="https://shop.example/", accounts={"main": {"base_url": "http://p/v/"}}
    )

    assert settings.webhook_base_url == "https://shop.example"
    assert settings.account("main").url == "http://p/v"


def test_only_skinsback_has_a_documented_rate_limit() -> None:
    limits = [
        AccountSettings.model_validate({"provider": name}).requests_per_minute
        for name in ("skinsnode", "skinsback", "skinslink")
    ]

    assert limits == [None, 500, None]


def test_a_password_among_an_addresss_options_is_masked_as_any(tmp_path: Path) -> None:
    url = "postgresql://u@h/d?password=canary-option-1&sslpassword=canary%20option-2"

    load_settings(_env_file=None, data_dir=tmp_path, database_url=url)

    assert masked("canary-option-1, canary option-2") == "***, ***"
