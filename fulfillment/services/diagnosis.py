"""`fulfillment doctor`: look at everything that must be right, and name the setting that is not."""

from urllib.parse import urlsplit

from fulfillment.errors import FulfillmentError
from fulfillment.services import brakes, invariants, recovery, updates
from fulfillment.services.context import Context, build_context
from fulfillment.services.merchants import why_strange
from fulfillment.services.operations import Check, check_readiness
from fulfillment.settings import PREFIX, Settings
from fulfillment.store import accounts, doubts, erasure, rights
from fulfillment.store.accounts import Purpose
from schemas.money import cap_in_cents

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def examine(settings: Settings, broker_trouble: str | None = None) -> list[Check]:
    """Check the settings, the database and every account; asks each provider for its balance.

    What is wrong with the broker is the caller's to find out: None where nobody has looked.
    """
    told = Check("broker", not broker_trouble, broker_trouble or "")
    checks = _examine(settings, is_broker_ill=bool(broker_trouble))
    return checks if broker_trouble is None else [*checks, told]


def _examine(settings: Settings, *, is_broker_ill: bool) -> list[Check]:
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
    try:
        checks += check_readiness(context, is_broker_ill=is_broker_ill)
    except FulfillmentError as error:
        checks.append(Check("database", is_ok=False, detail=str(error)))
    lacking = _check_rights(context)
    checks += lacking
    checks += _check_doubt(context)
    checks += _check_stops(context)
    checks += _check_updates(context)
    checks += _check_unread(context)
    checks += _check_data(context)
    checks += _check_followed(context)
    if not lacking:  # a request is counted before it is sent
        checks += [_check_account(context, name) for name in settings.accounts]
    context.close()
    return checks


def _check_rights(context: Context) -> list[Check]:
    """Tell what the database's user may not do, if there is something."""
    try:
        with context.database.transaction() as session:
            lacking = rights.lacking(session)
    except FulfillmentError:
        return []  # the database has failed above
    told = "; ".join(f"{right} on {tables}" for right, tables in lacking.items())
    detail = f"the database's user lacks {told}; no account was asked"
    return [Check("database rights", is_ok=False, detail=detail)] if lacking else []


def _check_data(context: Context) -> list[Check]:
    """Say what the last check of the invariants found, and whether all that is kept can be read."""
    try:
        broken, checked_at = invariants.last_findings(context)
        with context.database.transaction() as session:
            used = erasure.key_ids(session)
    except FulfillmentError:
        return []  # the database or its schema has failed above
    at = f"checked at {checked_at.isoformat()}" if checked_at else "not checked yet"
    checks = [Check("invariants", not broken, at)]
    checks += [
        Check(
            f"invariant {each.invariant}",
            is_ok=False,
            detail=f"{each.promise}; not so: {', '.join(each.subjects)}",
        )
        for each in broken
    ]
    missing = ", ".join(sorted(used - context.seal.key_ids))
    detail = f"lacks {missing}" if missing else f"in use: {', '.join(sorted(used)) or 'none'}"
    return [*checks, Check("encryption keys", not missing, detail)]


def _check_followed(context: Context) -> list[Check]:
    """Tell of orders whose account is not configured, or is another merchant's than it was."""
    try:
        with context.database.transaction() as session:
            found = accounts.followed(session)
    except FulfillmentError:
        return []  # as above
    checks = []
    for account, merchant, under_way, watched in found:
        if why := why_strange(context, account, merchant):
            counts = f"{under_way} orders under way and {watched} watched deliveries"
            detail = f"nobody follows {counts}: {why}"
            checks.append(Check(f"orders at {account}", is_ok=False, detail=detail))
    return checks


def _check_doubt(context: Context) -> list[Check]:
    """Tell while rows may be missing. That is no fault to be mended, since it ends by itself."""
    try:
        with context.database.transaction() as session:
            doubt = doubts.standing(session, context.now())
    except FulfillmentError:
        return []  # the database or its schema has failed above
    if doubt is None:
        return []
    told = Check(
        "database in doubt", is_ok=True, detail=recovery.describe(doubt.since, doubt.until)
    )
    return [
        told,
        *(
            Check(f"orders of {name} in doubt", False, f"wait: {why}; {recovery.MUTE_ACT}")
            for name, why in recovery.mute_accounts(context).items()
        ),
    ]


def _check_stops(context: Context) -> list[Check]:
    """Tell what keeps accounts from buying. A fault is only what waits for a person to look."""
    try:
        views = brakes.show_accounts(context)
    except FulfillmentError:
        return []  # the database or its schema has failed above
    return [
        Check(
            f"buying at {view.account}",
            is_ok=view.stopped_by not in brakes.WATCHES,
            detail=f"nothing new is bought: {why}",
        )
        for view in views
        if (why := brakes.what_stops(view, context.now()))
    ]


def _check_updates(context: Context) -> list[Check]:
    """Say whether the store still listens where it did."""
    try:
        audience = updates.audience(context)
    except FulfillmentError:
        return []  # the database or its schema has failed above
    queues = ", ".join(audience.names)
    if audience.missing_since is None:
        return [Check("updates", is_ok=True, detail=queues or "no queue of the store was seen yet")]
    since = audience.missing_since.isoformat(timespec="seconds")
    detail = f"wait since {since}: {queues} is bound no more; {updates.UNHEARD}"
    return [Check("updates", is_ok=False, detail=detail)]


def _check_unread(context: Context) -> list[Check]:
    """Say whether the store reads what it is told."""
    try:
        found = updates.unread(context)
    except FulfillmentError:
        return []  # as above
    if not found:
        name = f"{PREFIX}UPDATES_QUEUES"
        why = "no queue"
        if context.settings.is_amqp:
            why = f"RabbitMQ has no queue that {name} names, or nobody has looked within minutes"
        return [Check("updates read", is_ok=True, detail=f"not known: {why}")]
    told = ", ".join(f"{each.messages} wait in {each.queue}" for each in found)
    is_read = found[0].messages <= updates.MOST_UNREAD
    detail = told if is_read else f"{told}; {updates.UNREAD}"
    return [Check("updates read", is_read, detail)]


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
    detail = f"balance {cents} cents"
    if not context.account(name).client_id:
        detail += "; without its CLIENT_ID another merchant's key would not be noticed"
    return Check(title, is_ok=True, detail=detail)
