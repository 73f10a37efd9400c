"""Why the database does not serve us, in words of ours.

PostgreSQL's and libpq's own may quote parts of the address: they are looked at, and never repeated.
"""

import re

import psycopg
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

_NO_ENTRY = "it refuses this user or password"
_NO_DATABASE = "there is no such database"
_FULL = "it has no connections left"
_BUSY = "it is starting up or shutting down"
_TOO_SLOW = "it does not answer in time"
_GONE = "the connection was cut off"
_ALL_LENT = "all connections of this process are in use"
#: Beginnings of SQLSTATEs that PostgreSQL ends, or does not begin, a connection with.
_BY_STATE = (
    ("28", _NO_ENTRY),
    ("3D000", _NO_DATABASE),
    ("53300", _FULL),
    ("57P03", _BUSY),
)
#: For a connection that did not come about libpq gives no SQLSTATE, only a text: in English, but
#: for what the server says in its own language. The first that fits: what the server says is more
#: than how the attempt without or with SSL, which libpq makes besides, has failed.
_BY_WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"authentication failed|no password supplied|FATAL: +role .* does not exist"
            r"|not permitted to log in|permission denied for database",
            _NO_ENTRY,
        ),
        (
            r"no pg_hba\.conf entry|pg_hba\.conf rejects",
            "its pg_hba.conf does not let this user in from here",
        ),
        (r"FATAL: +database .* does not exist", _NO_DATABASE),
        (r"too many (clients|connections)|connection slots are reserved", _FULL),
        (r"the database system is ", _BUSY),
        (r"(?i)timeout expired|timed out", _TOO_SLOW),
        (
            r"failed to resolve host|could not translate host name",
            "the name of its host cannot be resolved",
        ),
        (
            r"Connection refused|\.s\.PGSQL\.\d+\" failed: No such file",
            "nobody listens at its address (connection refused)",
        ),
        (r"Network is unreachable|No route to host", "no way leads to its host"),
        (
            r"closed the connection|connection is (closed|lost)|reset by peer|Broken pipe"
            r"|EOF detected|terminating connection",
            _GONE,
        ),
        (
            r"connection is bad: invalid|invalid (port|integer) |could not parse network address"
            r"|could not match \d+|may not be used with",
            "an option of its address has a value that libpq does not know",
        ),
        (
            r"FATAL: +(.* requires a value|unrecognized configuration|invalid (command|value))",
            "it does not take what its address says in options",
        ),
        (r"definition of service ", "the service that its address names is not defined"),
        (
            r"session is (not )?read-only|server is (not )?in hot standby",
            "it is not what target_session_attrs of its address asks for",
        ),
        (
            r"channel binding required|authentication method requirement|requirepeer specifies",
            "it does not prove itself as its address demands",
        ),
        (r"GSSAPI encryption required", "no encrypted connection came about (GSSAPI)"),
        (r"\bSSL\b|certificate", "no encrypted connection came about (SSL)"),
    )
)


def why(error: BaseException) -> str:
    """Say what kind of failure it is; of one that no sentence is for, the name."""
    if isinstance(error, PoolTimeoutError):
        return _ALL_LENT
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    text = str(error)
    found = (
        (words for start, words in _BY_STATE if state.startswith(start))
        if state is not None
        else (words for pattern, words in _BY_WORDS if pattern.search(text))
    )
    return next(found, type(error).__name__)
