"""Skinslink's webhooks: the signature stands in the body and covers the purchase's id only.

Whoever saw one delivery can write any other about the same purchase. So nothing but the id is
believed: a delivery is a hint to ask about its order.
"""

import hashlib
from collections.abc import Sequence

from fulfillment.errors import WebhookRejected
from fulfillment.providers.http import Unusable, read_json
from fulfillment.providers.reading import number, order_id
from fulfillment.providers.signing import BAD_SIGNATURE, is_base64_of
from fulfillment.providers.skinslink import wire
from schemas.provider import WebhookNotice


def read(body: bytes, secrets: Sequence[str]) -> WebhookNotice:
    """Verify the delivery, then read whose it is. Raises WebhookRejected."""
    try:
        document = read_json(body)
    except Unusable as error:
        raise WebhookRejected("expected one JSON object") from error
    purchase_id = document.get("purchase_id") if isinstance(document, dict) else None
    if type(purchase_id) is not int or number(purchase_id) is None:
        raise WebhookRejected("expected a purchase_id, a natural number")
    signature = document.get("sign")
    digests = [hashlib.sha256(f"{purchase_id}{secret}".encode()).digest() for secret in secrets]
    if not isinstance(signature, str) or not is_base64_of(signature, digests):
        raise WebhookRejected(BAD_SIGNATURE)
    # Unsigned: which order is asked about, should the id not be known yet, and nothing more.
    hint = order_id(document.get("merchant_tx_id"))
    status = document.get("status")
    known = status if isinstance(status, str) and status in wire.STATES else "?"
    return WebhookNotice(
        hint or "",
        None,
        None,
        provider_reference=str(purchase_id),
        # Bytes that anybody may vary must not make a new delivery each time.
        identity=f"{purchase_id}.{known}",
    )
