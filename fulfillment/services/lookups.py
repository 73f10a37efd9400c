"""Ask an account for orders of ours in bulk; what cannot be asked or read is an answer too."""

from collections.abc import Mapping, Sequence

from fulfillment.errors import ProviderError, ProviderNotReached
from fulfillment.services import backstop
from fulfillment.services.budget import Grant
from fulfillment.services.context import Context
from schemas.provider import OrderReport


def look_up(
    context: Context, account: str, grant: Grant, names: Sequence[str]
) -> Mapping[str, OrderReport] | ProviderError:
    """Give the reports by external id, or why there are none; an unknown order is absent."""

    def act() -> Mapping[str, OrderReport]:
        with grant:
            return context.provider(account).reports(names)

    try:
        return backstop.alone(act, ", ".join(names), _failed)
    except ProviderError as error:
        return error


def _failed(reason: str) -> Mapping[str, OrderReport]:
    raise ProviderNotReached(reason)
