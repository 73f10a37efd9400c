"""The trade-window watchdog's tick."""

from fulfillment.broker import app
from fulfillment.services import watchdog
from schemas import messages
from tasks.base import FulfillmentTask, context


@app.task(bind=True, base=FulfillmentTask, name=messages.WATCH_TRADE_WINDOWS)
def watch_trade_windows(self: FulfillmentTask, /) -> dict[str, list[str]]:
    """Remind, ask or alarm where a trade window is due."""
    return {"orders": watchdog.watch_trade_windows(context())}
