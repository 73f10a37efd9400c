"""SkinsNode's webhooks: raw bytes first, JSON only once the signature is good.

Only the timestamp and the body are signed; delivery id and event type are anybody's (K1).
"""

import re
from collections.abc import Mapping, Sequence

from fulfillment.errors import WebhookRejected, WebhookUnreadable
from fulfillment.providers.http import Unusable, read_json
from fulfillment.providers.reading import EXTERNAL_ID, instant
from fulfillment.providers.signing import BAD_SIGNATURE, is_hex_hmac, only_header
from fulfillment.providers.skinsnode import wire
from schemas.provider import WebhookNotice

TIMESTAMP = "x-timestamp"
SIGNATURE = "x-signature"
UNREADABLE = "well signed, but no JSON that names an order"
UTC_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")


def read(headers: Mapping[str, str], body: bytes, secrets: Sequence[str]) -> WebhookNotice:
    """Verify the delivery, then read it. Raises WebhookRejected.

    A well-signed delivery that cannot be taken at its word (a malformed time, an amount that is
    not exact, a duplicate key) has no report: it is a hint to ask. Its age is not judged here.
    """
    timestamp = only_header(headers, TIMESTAMP)
    message = timestamp.encode("latin-1", "replace") + b"." + body
    if not is_hex_hmac(only_header(headers, SIGNATURE), secrets, message):
        raise WebhookRejected(BAD_SIGNATURE)
    try:
        document = read_json(body)
    except Unusable as error:
        raise WebhookUnreadable(UNREADABLE) from error
    external_id = document.get("externalId") if isinstance(document, dict) else None
    if not (isinstance(external_id, str) and EXTERNAL_ID.fullmatch(external_id)):
        raise WebhookUnreadable(UNREADABLE)
    signed_at = instant(timestamp) if UTC_TIME.fullmatch(timestamp) else None
    try:
        report = wire.read_order(document) if signed_at else None
    except Unusable:
        report = None
    return WebhookNotice(external_id, signed_at, report)
