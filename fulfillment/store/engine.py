"""The connection to Postgres and the one way to open a transaction.

Foreign database errors are translated here; the database's address never enters a message.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session

from fulfillment.errors import SchemaOutdated, ServerUnreachable, TransactionConflict
from fulfillment.log import get_logger

log = get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SETTING = "FULFILLMENT_DATABASE_URL"
# SQLSTATEs, or their beginnings, by which the server says that it is away or going away (08, 57P),
# full (53, 58), read-only (25006), that we were idle (25P) or that a statement took too long or
# waited too long for a lock (57014, 55P03).
_LOST = ("08", "53", "58", "57P", "25006", "25P", "57014", "55P03")
# It undid the transaction for another one's sake: serialization failure, deadlock.
_CONFLICTS = ("40001", "40P01")
#: How often a transaction is begun before its conflict is the caller's.
_TRIES = 5
#: A server that vanishes without a word is missed after so many seconds, not after a quarter of an
#: hour: while data is on its way to it, and while it is awaited.
_MISSED = {
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}


class Database:
    """A pool of connections; create one a process, after any fork."""

    def __init__(self, url: str, *, pool_size: int = 10, statement_timeout_s: float = 20) -> None:
        options = {
            "statement_timeout": round(statement_timeout_s * 1000),
            "idle_in_transaction_session_timeout": 30_000,
            "timezone": "UTC",
        }
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        self.engine: Engine = create_engine(
            parsed,
            pool_size=pool_size,
            max_overflow=10,
            pool_timeout=10,
            pool_pre_ping=True,
            pool_recycle=1800,
            hide_parameters=True,
            connect_args={
                "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
                "connect_timeout": 5,
                **_MISSED,
            },
        )

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Run one short transaction; it commits when the block ends and rolls back on any error.

        Raises ServerUnreachable when Postgres does not serve us, TransactionConflict when it undid
        the transaction (see `repeated`) and SchemaOutdated before migration. Whether a commit that
        was cut off took place is unknown: callers re-read state.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except (DBAPIError, PoolTimeoutError) as error:
            original = getattr(error, "orig", None)
            if isinstance(original, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
                raise SchemaOutdated from None
            if not isinstance(error, PoolTimeoutError) and not _is_lost(original):
                raise
            kind = TransactionConflict if _is_conflict(original) else ServerUnreachable
            raise kind("PostgreSQL", SETTING, type(original or error).__name__) from None

    def ping(self) -> None:
        """Ask the database for nothing. Raises ServerUnreachable."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            name = type(getattr(error, "orig", None) or error).__name__
            raise ServerUnreachable("PostgreSQL", SETTING, name) from None

    def close(self) -> None:
        self.engine.dispose()


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
