"""How workers share the orders of one batch, so that none waits while another one has room."""

from fulfillment.services.claiming import WALLET, claim_name
from fulfillment.services.context import Context
from fulfillment.store import claims
from fulfillment.store.engine import repeated
from schemas.messages import Batch

#: As many workers may join in a batch. Each message names all of its orders.
_MOST_COPIES = 8


def share_out(context: Context, batch: Batch, *, is_new: bool) -> tuple[Batch, list[Batch]]:
    """Give what this worker submits of a batch, and the messages for others to join in.

    In a large batch that is new all work side by side, each on what none has taken yet: its other
    messages are copies, and one that is lost costs help. Of what was begun before, each gets a part
    of its own; if its message is lost, the sweep finds it when the claim has lapsed.
    """
    own = room(context, batch)
    if batch.get("is_copy") or len(batch["ids"]) <= own:
        return batch, []
    if is_new:
        count = min((len(batch["ids"]) - 1) // own, _MOST_COPIES)
        return batch, [Batch(**{**batch, "is_copy": True})] * count
    mine, *others = (
        Batch(
            account=batch["account"],
            token=batch["token"],
            ids=batch["ids"][start : start + own],
            names=batch["names"][start : start + own],
        )
        for start in range(0, len(batch["ids"]), own)
    )
    return mine, others


@repeated
def leave(context: Context, batch: Batch) -> None:
    """Leave what nobody has taken of the batch to the next sweep."""
    with context.database.transaction() as session:
        rest = claim_name(batch["token"], WALLET)
        claims.release(session, batch["ids"], rest, is_own=False)


def room(context: Context, batch: Batch) -> int:
    """Give how many orders one process has under way or at hand: whatever is more, it shares."""
    return 2 * context.account(batch["account"]).max_submits_in_flight
