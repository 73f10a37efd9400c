"""`fulfillment doctor`: look at everything that must be right, and name the setting that is not."""

from urllib.parse import urlsplit

from fulfillment.errors import FulfillmentError
from fulfillment.services.context import Context, build_context
from fulfillment.services.operations import Check, check_readiness
from fulfillment.settings import PREFIX, Settings
from fulfillment.store.accounts import Purpose
from schemas.money import cap_in_cents

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def examine(settings: Settings) -> list[Check]:
    """Check the settings, the database and every account; asks each provider for its balance."""
    checks = []
    for name in ("database_url", "broker_url", "encryption_keys", "api_token"):
        value = getattr(settings, name).get_secret_value()
        checks.append(Check(f"{PREFIX}{name.upper()}", bool(value), "" if value else "is not set"))
    if not settings.accounts:
        checks.append(Check(f"{PREFIX}ACCOUNTS__MAIN__PROVIDER", is_ok=False, detail="is not set"))
    checks += [_check_public_url(settings, name) for name in settings.accounts]
    try:
        context = build_context(settings, threads=2)
    except FulfillmentError as error:
        return [*checks, Check("context", is_ok=False, detail=str(error))]
    checks += check_readiness(context)
    checks += [_check_account(context, name) for name in settings.accounts]
    context.close()
    return checks


def _check_public_url(settings: Settings, name: str) -> Check:
    """Say whether the account's provider can reach our webhooks, as far as addresses tell."""
    provider_host = urlsplit(settings.account(name).url).hostname or ""
    is_local = provider_host in _LOOPBACK
    ours = urlsplit(settings.webhook_base_url).hostname or ""
    is_reachable = is_local or ours not in (*_LOOPBACK, "0.0.0.0", "::")  # noqa: S104 - compared
    detail = "" if is_reachable else f"{provider_host} cannot send webhooks to {ours}"
    return Check(f"{PREFIX}PUBLIC_URL for {name}", is_reachable, detail)


def _check_account(context: Context, name: str) -> Check:
    title = f"account {name}"
    try:
        provider = context.provider(name)
        if context.budget(name).left(Purpose.URGENT) in (0, 1):
            return Check(title, is_ok=True, detail="not asked: its rate budget is used up")
        if not provider.healthy():
            return Check(title, is_ok=False, detail="the provider does not answer its health check")
        cents = cap_in_cents(provider.wallet_mills())
    except FulfillmentError as error:
        return Check(title, is_ok=False, detail=str(error))
    return Check(title, is_ok=True, detail=f"balance {cents} cents")
