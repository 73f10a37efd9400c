"""Addresses of PostgreSQL and the broker: which ones leave no doubt, and what is meant by them.

What is wrong with one is said without any part of it: there may be a password in it.
"""

import re
from urllib.parse import parse_qs, quote, unquote, urlsplit

_BROKERS = ("redis://", "rediss://", "redis+socket://", "amqp://", "amqps://", "pyamqp://")

#: kombu takes these twice then, and fails.
_LOGIN_OPTION = re.compile(r"[?&](hostname|port|transport|userid|password)=")
#: Redis has numbers for its databases; kombu takes them from the path, or from this option.
_DATABASE = re.compile(r"rediss?://[^/?#]*/*[0-9]*(?:[?#].*)?")
_SOCKET_DATABASE = re.compile(r"[?&]virtual_host=(?![0-9]+(?:[&#]|$))")
#: How a certificate may be looked at, in kombu's words and in those of redis-py.
_WORDS = ("required", "optional", "none")
_CERTIFICATE_WORDS = {*_WORDS, *(f"CERT_{word.upper()}" for word in _WORDS)}

# User and password, hosts, port. Libraries read anything else each in its own way, and quote parts
# of a password in their errors.
_AUTHORITY = re.compile(
    r"(?:[^@\[\]]*@)?(?:(?:\[[0-9A-Fa-f:.%]+\]|[^:@\[\],]*)(?::[0-9]*)?(?:,(?!$)|$))+"
)
_PORT = re.compile(r":([0-9]+)(?=,|$)")
_HOST = re.compile(r"(?:\[(?P<number>[^\]]*)\]|(?P<name>[^:]*))(?::(?P<port>[0-9]*))?")
_PORTS = "expected a port from 1 to 65535"
_FORM = "amqp://user:password@host:port/vhost"
_FORMS = {
    "redis": "redis://:password@host:port/0",
    "rediss": "rediss://:password@host:port/0",
    "redis+socket": "redis+socket:///path/of/redis.sock",
}
_ENCODED = "what is special in a password must be percent-encoded"


def complaint_of_database(url: str) -> str:
    """Say what is expected of an address of PostgreSQL that is none; nothing where it is one."""
    schemes = ("postgresql://", "postgresql+psycopg://", "postgres://")
    if not (url.startswith(schemes) and _has_clear_host(url)):
        return f"expected postgresql://user:password@host:port/database; {_ENCODED}"
    if not _has_ports(url):
        return _PORTS
    if not all(map(_is_name, _hosts(url))):
        return "expected a host whose name has 1 to 63 letters between two dots"
    return ""


def with_hosts_as_options(url: str) -> str:
    """Write as options what SQLAlchemy then reads as libpq does: several hosts, one that is
    encoded, and one with a colon and no port."""
    scheme, _, rest = url.partition("://")
    authority = _split(url)[0]
    login, at, hosts = authority.rpartition("@")
    if "," not in hosts and "%" not in hosts and not hosts.endswith(":"):
        return url
    each = [found for host in hosts.split(",") if (found := _HOST.fullmatch(host))]
    named = {
        "host": unquote(",".join(found["number"] or found["name"] or "" for found in each)),
        "port": ",".join(found["port"] or "" for found in each),
    }
    path, mark, query = rest.removeprefix(authority).partition("?")
    # As with libpq, what an option says wins; ports are those of its hosts then.
    said = {"host", "port"} if "host" in _options(url) else {*_options(url)}
    new = [f"{name}={quote(value)}" for name, value in named.items() if name not in said]
    return f"{scheme}://{login}{at}{path or '/'}?{'&'.join([*new, query] if mark else new)}"


def complaint_of_broker(url: str) -> str:
    """Say what is expected of an address of a broker that is none; nothing where it is one."""
    if not url.startswith(_BROKERS):
        return "expected amqp://, amqps://, redis://, rediss:// or redis+socket://"
    each = url.split(";")
    if not all(map(_has_clear_host, each)) or _LOGIN_OPTION.search(url):
        return f"expected {_FORMS.get(url.partition(':')[0], _FORM)}; {_ENCODED}"
    if not all(map(_has_ports, each)):
        return _PORTS
    if not all(map(_has_numbered_database, each)):
        return "expected a database of Redis, which is a number: redis://host:port/0"
    if url.startswith(("amqp", "pyamqp")) and any("ssl" in _options(one) for one in each):
        return "expected amqps:// in place of the option ssl"
    if not all(map(_has_known_word, each)):
        return f"expected one of {', '.join(_WORDS)} as ssl_cert_reqs"
    return ""


def with_checked_certificates(url: str) -> str:
    """Have the certificate of every `rediss://` checked for which the address says nothing else.

    kombu checks none unless it is told to; the host's name is checked along with it.
    """
    return ";".join(map(_with_checked_certificate, url.split(";")))


def _with_checked_certificate(url: str) -> str:
    if not _is_redis_with_tls(url) or "ssl_cert_reqs" in _options(url):
        return url
    address = url.partition("#")[0]
    return f"{address}{'&' if '?' in address else '?'}ssl_cert_reqs=required"


def can_be_read(url: str) -> bool:
    """Say whether an address has parts at all: a bracket that is not closed hides them."""
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def _split(url: str) -> tuple[str, list[str]]:
    """Give the authority, and what stands behind it."""
    authority, *rest = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)
    return authority, rest


def _has_clear_host(url: str) -> bool:
    """Say whether it is beyond doubt where the password ends and the host begins."""
    authority, rest = _split(url)
    is_cut_off = authority and "@" not in authority and "@" in str(rest)
    return bool(_AUTHORITY.fullmatch(authority)) and not is_cut_off


def _has_ports(url: str) -> bool:
    hosts = _split(url)[0].rpartition("@")[2]
    return all(0 < int(port) <= 65_535 for port in _PORT.findall(hosts))


def _hosts(url: str) -> list[str]:
    """Give the names of hosts that an address of PostgreSQL has, also those among its options."""
    named = [unquote(_split(url)[0].rpartition("@")[2]), *_options(url).get("host", ())]
    each = [host for hosts in named for host in hosts.split(",")]
    return [found["name"] for host in each if (found := _HOST.fullmatch(host)) and found["name"]]


def _is_name(host: str) -> bool:
    """Say whether Python can look the name up; a path, or what names a socket, it does not."""
    if host.startswith(("/", "@")):
        return True
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _has_numbered_database(url: str) -> bool:
    if url.startswith("redis+socket://"):
        return not _SOCKET_DATABASE.search(url)
    return not url.startswith("redis") or bool(_DATABASE.fullmatch(url))


def _has_known_word(url: str) -> bool:
    if not _is_redis_with_tls(url):
        return True
    words = _options(url).get("ssl_cert_reqs", ["required"])
    return len(words) == 1 and words[0] in _CERTIFICATE_WORDS


def _is_redis_with_tls(url: str) -> bool:
    return url.lower().startswith("rediss://")


def _options(url: str) -> dict[str, list[str]]:
    return parse_qs(url.partition("#")[0].partition("?")[2], keep_blank_values=True)
