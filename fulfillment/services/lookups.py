"""Ask an account for orders of ours in bulk; what cannot be asked or read is an answer too.

No provider says how many orders it answers at once: what a bulk answer leaves out is not unknown to
the provider until it was asked for alone.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

from fulfillment.errors import ProviderError
from fulfillment.services import backstop
from fulfillment.services.budget import Grant
from fulfillment.services.context import Context
from fulfillment.store.accounts import Purpose
from schemas.provider import OrderReport


def look_up(
    context: Context, account: str, grant: Grant, names: Sequence[str]
) -> Mapping[str, OrderReport] | ProviderError:
    """Give the reports by external id, or why there are none; an unknown order is absent."""

    def act() -> Mapping[str, OrderReport]:
        with grant:
            return context.provider(account).reports(names)

    try:
        return backstop.read(act, ", ".join(names))
    except ProviderError as error:
        return error


def look_up_alone(
    context: Context, account: str, executor: Executor, purpose: Purpose, names: Sequence[str]
) -> dict[str, Mapping[str, OrderReport] | ProviderError]:
    """Ask for each of these orders by itself; what the rate budget has no room for is absent."""
    if not names:
        return {}
    grant = context.budget(account).take(purpose, len(names))
    asked = names[: grant.size]
    flying = [executor.submit(look_up, context, account, grant, [name]) for name in asked]
    context.threads.all_done(flying)
    grant.give_back()
    return {name: future.result() for name, future in zip(asked, flying, strict=True)}
