"""SkinsBack's event webhooks: raw bytes first, JSON only once the signature is good.

The signature covers the body and no time, so an event can be replayed for ever (K12): it is never
applied, its order is asked about instead. The fixed MD5 of id and secret is not accepted.
"""

from collections.abc import Mapping, Sequence

from fulfillment.errors import WebhookRejected, WebhookUnreadable
from fulfillment.providers.http import Unusable, read_json
from fulfillment.providers.reading import number
from fulfillment.providers.signing import BAD_SIGNATURE, is_hex_hmac, only_header
from fulfillment.providers.skinsback import wire
from schemas.provider import WebhookNotice

SIGNATURE = "signature"
UNREADABLE = "well signed, but no event in JSON"


def read(headers: Mapping[str, str], body: bytes, secrets: Sequence[str]) -> WebhookNotice:
    """Verify the delivery, then read whose it is. Raises WebhookRejected.

    An event that names no purchase, such as a change of the balance, is about no order.
    """
    if not is_hex_hmac(only_header(headers, SIGNATURE), secrets, body):
        raise WebhookRejected(BAD_SIGNATURE)
    try:
        document = read_json(body)
    except Unusable as error:
        raise WebhookUnreadable(UNREADABLE) from error
    if not (isinstance(document, dict) and isinstance(document.get("event"), str)):
        raise WebhookUnreadable(UNREADABLE)
    data = document.get("data")
    reference = number(data.get("buy_id")) if isinstance(data, dict) else None
    return WebhookNotice(wire.custom_id_of(data) or "", None, None, provider_reference=reference)
