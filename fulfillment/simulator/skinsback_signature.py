"""SkinsBack's requests as its PHP sees them: bodies decoded, scalars printed, signatures made."""

import hashlib
import hmac
import json
import re
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

Params = dict[str, Any]


def decode(content_type: str, body: bytes) -> Params:
    """Read a JSON or form body; what cannot be read has no parameters."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return {}
    if "form-urlencoded" in content_type or not text.lstrip().startswith("{"):
        return decode_form(text)
    try:
        found = json.loads(text, parse_float=Decimal, parse_constant=str)
    except (ValueError, ArithmeticError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def decode_form(text: str) -> Params:
    """Read a form as PHP does: `ids[]=a&ids[]=b` and `items[0][id]=5` are arrays."""
    found: Params = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        head = name.partition("[")[0]
        keys = [head, *re.findall(r"\[([^\]]*)\]", name[len(head) :])]
        place: Params = found
        for index, given in enumerate(keys):
            key = given or str(len(place))
            if index == len(keys) - 1:
                place[key] = value
            else:
                below = place.get(key)
                place[key] = place = below if isinstance(below, dict) else {}
    return {key: _listed(value) for key, value in found.items()}


def _listed(value: Any) -> Any:
    """Make a list of what PHP numbered by itself."""
    if not isinstance(value, dict):
        return value
    if list(value) == [str(index) for index in range(len(value))]:
        return [_listed(each) for each in value.values()]
    return {key: _listed(each) for key, each in value.items()}


def printed(value: Any) -> str:
    """Print a scalar as PHP does, but a float with as many digits as it takes."""
    match value:
        case None | False:
            return ""
        case True:
            return "1"
        case Decimal():
            text = repr(float(value)).removesuffix(".0")
            mantissa, e, exponent = text.partition("e")
            if not e:
                return text
            return f"{mantissa if '.' in mantissa else mantissa + '.0'}E{int(exponent):+d}"
    return str(value)


def signed_text(params: Params) -> str:
    """Write what is signed: all scalars but `sign`, by key."""
    scalars = {k: v for k, v in params.items() if k != "sign" and not isinstance(v, list | dict)}
    return "".join(f"{key}:{printed(scalars[key])};" for key in sorted(scalars))


def sign(params: Params, secret: str) -> str:
    """Sign a request: HMAC-SHA1, lower-case hex."""
    # Half of a surrogate pair can stand in JSON, but not in UTF-8.
    text = signed_text(params).encode(errors="replace")
    return hmac.new(secret.encode(), text, hashlib.sha1).hexdigest()


def sign_event(secret: str, body: bytes) -> str:
    """Sign a webhook: HMAC-SHA256 over the raw body, lower-case hex."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def refusal_of(
    params: Params, given_id: str | None, given_secret: str | None, client_id: str, secret: str
) -> tuple[int, str] | None:
    """Judge a request by its headers, else by its `shopid` and `sign`."""
    if given_id is not None or given_secret is not None:
        if given_id != client_id:
            return -2, "invalid_shopid"
        if not hmac.compare_digest((given_secret or "").encode(), secret.encode()):
            return -10, "invalid_client_secret"
        return None
    if printed(params.get("shopid")) != client_id:
        return -2, "invalid_shopid"
    given = str(params.get("sign", "")).encode(errors="replace")
    if not hmac.compare_digest(given, sign(params, secret).encode()):
        return -3, "invalid_signature"
    return None
