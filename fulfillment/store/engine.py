"""The connection to Postgres and the one way to open a transaction.

Foreign database errors are translated here; the database's address never enters a message.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import namedtuple_row, tuple_row
from psycopg.types.json import set_json_loads
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from fulfillment.addresses import with_hosts_as_options
from fulfillment.errors import (
    ConfigurationError,
    RightMissing,
    SchemaOutdated,
    ServerUnreachable,
    TransactionConflict,
)
from fulfillment.log import get_logger, masked
from fulfillment.store import failures

log = get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SETTING = "FULFILLMENT_DATABASE_URL"
# SQLSTATEs, or their beginnings, by which the server says that it is away or going away (08, 57P),
# full (53, 58), read-only (25006), a standby (55000), that it does not let us in (28, 3D), that we
# were idle (25P) or that a statement took too long or waited too long for a lock (57014, 55P03).
_LOST = ("08", "53", "58", "57P", "25006", "55000", "28", "3D", "25P", "57014", "55P03")
# It undid the transaction for another one's sake: serialization failure, deadlock.
_CONFLICTS = ("40001", "40P01")
#: How often a transaction is begun before its conflict is the caller's.
_TRIES = 5
#: A connection that nobody used for so long is tried before it is used again.
_IDLE_S = 1.0
_LAST_USE = "last_use"
_SECONDS = re.compile(r"-?[0-9]{1,6}")
#: What the address may say otherwise. A server that vanishes without a word is missed after so many
#: seconds, not after a quarter of an hour: while data is on its way to it, and while it is awaited.
_USUAL = {
    "connect_timeout": 5,
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}


class Session:
    """One open transaction: statements go to psycopg as they are, `%(name)s` for a parameter.

    Its statements share two cursors: to make one takes a quarter of what a small statement does.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self._by_name = connection.cursor(row_factory=namedtuple_row)
        self._by_place: psycopg.Cursor[tuple[Any, ...]] | None = None

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Run a statement; give its rows, none where it has none, to be read by place or name."""
        cursor = self._by_name.execute(statement, parameters)
        return cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else ()

    def rows(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Give many rows that are read by place: half as dear as with names.

        They come in PostgreSQL's binary form, for which psycopg knows the types that we store.
        """
        if self._by_place is None:
            self._by_place = self.connection.cursor(row_factory=tuple_row, binary=True)
        return self._by_place.execute(statement, parameters).fetchall()

    def one(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Give the first row, None where there is none."""
        rows = self.execute(statement, parameters)
        return rows[0] if rows else None

    def scalar(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Give the first row's first value, None where there is none."""
        row = self.one(statement, parameters)
        return None if row is None else row[0]


class _OneStatement(Session):
    """Takes one statement: a second would be a second transaction."""

    _is_used = False

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        self._use()
        return super().execute(statement, parameters)

    def rows(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        self._use()
        return super().rows(statement, parameters)

    def _use(self) -> None:
        if self._is_used:
            raise RuntimeError("a second statement, which would be a transaction of its own")
        self._is_used = True


class Database:
    """A pool of connections; create one a process, after any fork.

    Raises ConfigurationError for an address that has options which libpq does not know, or that
    our statements cannot do with. What it says of waiting and of the session is kept, as far as
    our statements do not rely on it.
    """

    def __init__(self, url: str, *, pool_size: int = 10, statement_timeout_s: float = 20) -> None:
        address = _read(url)
        options = {
            # What a server, a database or a role may say otherwise, and our statements rely on.
            "default_transaction_isolation": r"read\ committed",
            "synchronous_commit": "on",
            "DateStyle": "ISO",
            "IntervalStyle": "postgres",
            "bytea_output": "hex",
            "standard_conforming_strings": "on",
            "array_nulls": "on",
            "statement_timeout": round(statement_timeout_s * 1000),
            "idle_in_transaction_session_timeout": 30_000,
            # Planning takes longer than most of our statements do, and none of their plans depends
            # on the values: tests/integration/test_query_plans.py.
            "plan_cache_mode": "force_generic_plan",
            "timezone": "UTC",
        }
        ours = " ".join(f"-c {name}={value}" for name, value in options.items())
        self.engine: Engine = create_engine(
            address,
            pool_size=pool_size,
            max_overflow=10,
            pool_timeout=10,
            pool_recycle=1800,
            # The one that was used last has our statements prepared.
            pool_use_lifo=True,
            hide_parameters=True,
            connect_args={
                **{name: v for name, v in _USUAL.items() if name not in address.query},
                # Of what is said twice the last counts.
                "options": f"{address.query.get('options', '')} {ours}".lstrip(),
                "client_encoding": "utf8",
                "prepare_threshold": 1,  # at the second use: a migration is used once
            },
        )
        event.listen(self.engine, "connect", _set_up)
        event.listen(self.engine, "checkin", _note_use)
        event.listen(self.engine, "checkout", _look_after_idling)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Run one short transaction; it commits when the block ends and rolls back on any error.

        Raises ServerUnreachable when Postgres does not serve us, RightMissing when it does not let
        our user do something, TransactionConflict when it undid the transaction (see `repeated`)
        and SchemaOutdated before migration. Whether a commit that was cut off took place is
        unknown: callers re-read state.
        """
        with _translated(), self._connection() as connection:
            yield Session(connection)
            connection.commit()

    @contextmanager
    def statement(self) -> Iterator[Session]:
        """Run one statement that is a transaction by itself, without the trips that begin and end
        one. Raises what `transaction` raises.
        """
        with _translated(), self._connection() as connection:
            connection.autocommit = True
            yield _OneStatement(connection)
            connection.autocommit = False

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        lent = self.engine.raw_connection()
        connection: Any = lent.driver_connection
        try:
            yield connection
        except BaseException:
            with suppress(psycopg.Error):
                connection.rollback()
                connection.autocommit = False
            if connection.closed or connection.autocommit:
                lent.invalidate()
            raise
        finally:
            lent.close()

    def ping(self) -> None:
        """Ask the database whether it can be written to. Raises ServerUnreachable."""
        with self.transaction() as session:
            # A role, a database or the server may say so; a standby always does.
            found = session.one(
                "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean"
            )
        for is_so, what in zip(found, ("it is a standby", "it is read-only"), strict=True):
            if is_so:
                raise ServerUnreachable("PostgreSQL", SETTING, what)

    def close(self) -> None:
        self.engine.dispose()


def _read(url: str) -> URL:
    """Read an address, with each option once: of several libpq takes the last."""
    try:
        address = make_url(with_hosts_as_options(url)).set(drivername="postgresql+psycopg")
        once = {
            name: value if isinstance(value, str) or name in ("host", "port") else value[-1]
            for name, value in address.query.items()
        }
        address = address.set(query={**once, **_ports(address.port, once)})
        whole = address.set(drivername="postgresql").render_as_string(False)
        conninfo_to_dict(whole.replace(" ", "%20"))  # SQLAlchemy leaves these as they are
        address.get_dialect()().create_connect_args(address)
    except (psycopg.ProgrammingError, ArgumentError):
        raise ConfigurationError(SETTING, "expected only options that libpq knows") from None
    if complaint := _complaint(once):
        raise ConfigurationError(SETTING, complaint)
    return address


def _ports(port: int | None, options: Mapping[str, Any]) -> dict[str, str]:
    """Give each of several hosts the one port that is said: libpq does so, SQLAlchemy does not."""
    hosts, said = options.get("host", ""), options.get("port") or (str(port) if port else "")
    count = len(hosts if isinstance(hosts, tuple) else hosts.split(","))
    if not isinstance(said, str) or not said or "," in said or count == 1:
        return {}
    return {"port": ",".join([said] * count)}


def _complaint(options: Mapping[str, Any]) -> str:
    """Say what is expected of options that libpq knows, and we cannot do with; nothing else."""
    encoding = str(options.get("client_encoding", "utf8")).lower().replace("-", "")
    if encoding not in ("utf8", "unicode", "auto"):
        return "expected UTF8 as client_encoding: items have stars"
    if not _SECONDS.fullmatch(str(options.get("connect_timeout", "5"))):
        return "expected connect_timeout in whole seconds"
    if "replication" in options:
        return "expected no option replication: such a connection reads no tables"
    return ""


@contextmanager
def _translated() -> Iterator[None]:
    """Raise our own errors for the database's, with no more of them than their kind."""
    try:
        yield
    except (psycopg.Error, SQLAlchemyError) as error:
        if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise SchemaOutdated from None
        if (refusal := refusal_of(error)) is None:
            raise
        raise refusal from None


def refusal_of(error: BaseException | None) -> ServerUnreachable | None:
    """Give our own error for one by which the database does not serve us; None for all others."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        # It names a table or the like, and nothing of the address.
        return RightMissing(masked(error.diag.message_primary or "permission denied"))
    if error is not None and (isinstance(error, PoolTimeoutError) or _is_lost(error)):
        kind = TransactionConflict if _is_conflict(error) else ServerUnreachable
        return kind("PostgreSQL", SETTING, failures.why(error))
    return None


def _set_up(connection: Any, record: ConnectionPoolEntry) -> None:
    """Read JSON fast, and keep the plans of all our statements: more than psycopg's hundred."""
    del record
    set_json_loads(msgspec.json.decode, connection)
    connection.prepared_max = 500


def _note_use(connection: Any, record: ConnectionPoolEntry) -> None:
    del connection
    record.info[_LAST_USE] = time.monotonic()


def _look_after_idling(connection: Any, record: ConnectionPoolEntry, proxy: object) -> None:
    """Have the pool replace a connection that died while nobody used it."""
    del proxy
    now = time.monotonic()
    if now - record.info.get(_LAST_USE, now) < _IDLE_S:
        return
    try:
        connection.execute("")
        connection.rollback()
    except psycopg.Error as error:
        raise InvalidatePoolError from error


def dense(statement: str) -> str:
    """Take the indentation out of a long statement without comments or texts of several words.

    What psycopg makes of a statement it keeps only up to 4,096 characters; to take a longer one
    apart each time costs as much as a small statement does.
    """
    return " ".join(statement.split())


def repeated(act: Callable[P, T]) -> Callable[P, T]:
    """Have a function that is one whole transaction run again where the database undid it.

    All that it decides by it must read inside, and it must ask no provider: see
    docs/decisions/0009. After five tries the caller gets the TransactionConflict.
    """

    @wraps(act)
    def acting(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(_TRIES - 1):
            try:
                return act(*args, **kwargs)
            except TransactionConflict as error:
                log.info("transaction.repeated", act=act.__qualname__, reason=str(error))
        return act(*args, **kwargs)

    return acting


def is_about_data(error: BaseException) -> bool:
    """Say whether the database refused what it was asked to keep, and not to serve at all."""
    return isinstance(error, psycopg.DataError)


def _is_conflict(original: BaseException | None) -> bool:
    return isinstance(original, psycopg.Error) and original.sqlstate in _CONFLICTS


def _is_lost(original: BaseException | None) -> bool:
    if isinstance(original, psycopg.InterfaceError):
        return True  # the connection is closed
    if not isinstance(original, psycopg.Error):
        return False
    if original.sqlstate is None:
        return isinstance(original, psycopg.OperationalError)
    return original.sqlstate.startswith((*_LOST, *_CONFLICTS))
