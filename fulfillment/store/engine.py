"""The connection to Postgres and the one way to open a transaction.

Foreign database errors are translated here; the database's address never enters a message.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel import Session

from fulfillment.errors import SchemaOutdated, ServerUnreachable

SETTING = "FULFILLMENT_DATABASE_URL"
# Classes of SQLSTATE that say "the server is away, going away or full"; other operational errors
# (a deadlock, a cancelled query) are about the query.
_LOST = ("08", "53", "57P")
_OPTIONS = "-c statement_timeout=20000 -c idle_in_transaction_session_timeout=30000 -c timezone=UTC"


class Database:
    """A pool of connections; create one a process, after any fork."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        self.engine: Engine = create_engine(
            parsed,
            pool_size=pool_size,
            max_overflow=10,
            pool_timeout=10,
            pool_pre_ping=True,
            pool_recycle=1800,
            hide_parameters=True,
            connect_args={"options": _OPTIONS, "connect_timeout": 5},
        )

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Run one short transaction; it commits when the block ends and rolls back on any error.

        Raises ServerUnreachable when Postgres does not answer and SchemaOutdated before migration.
        Whether a commit that was cut off took place is unknown: callers re-read state.
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
            raise ServerUnreachable(
                "PostgreSQL", SETTING, type(original or error).__name__
            ) from None

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


def _is_lost(original: BaseException | None) -> bool:
    if isinstance(original, psycopg.InterfaceError):
        return True  # the connection is closed
    if isinstance(original, psycopg.errors.ReadOnlySqlTransaction):
        return True  # a standby, or a server whose disk is being looked after
    if not isinstance(original, psycopg.OperationalError):
        return False
    return original.sqlstate is None or original.sqlstate.startswith(_LOST)
