"""Bring the database's schema up to date."""

import time
from itertools import repeat
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.errors import (
    DeadlockDetected,
    DuplicateColumn,
    DuplicateObject,
    DuplicateTable,
    LockNotAvailable,
    UndefinedColumn,
    UndefinedFunction,
    UndefinedObject,
    UndefinedTable,
)
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from fulfillment.errors import ConfigurationError, SchemaIncomplete, SchemaUnknown
from fulfillment.store import schema
from fulfillment.store.engine import SETTING, Database, refusal_of
from schemas.tables import OrderRow

MIGRATIONS = Path(__file__).parent / "migrations"
_ABSENT = (UndefinedTable, UndefinedColumn, UndefinedObject, UndefinedFunction)
# Any number that nobody else on this database locks: only one process migrates at a time.
_LOCK = 7_305_119_402
#: Whoever comes after a change that waits for its lock waits as well: so it waits only so long,
_LOCK_WAIT_S = 2
#: and is tried so often, with a pause for those who waited.
_TRIES = 60
_PAUSE_S = 0.5


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # Alembic reads "%" as the start of a variable, and paths may have one.
    here = str(MIGRATIONS).replace("%", "%%")
    config.set_main_option("script_location", here)
    config.set_main_option("path_separator", "newline")
    config.attributes["connection"] = connection
    return config


def migrate(database: Database, to: str = "head") -> bool:
    """Run all migrations that are missing, or go to another revision. Raises ServerUnreachable,
    SchemaUnknown, SchemaIncomplete, and ConfigurationError for a database that is not ours or
    cannot hold every text.

    Says no where a later version has been here: its schema serves this one as it is. Traffic may
    go on: a change that waits for a lock lets it pass, and is tried again.
    """
    try:
        with database.engine.connect() as connection:
            _check_encoding(connection)
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
            connection.execute(text(f"SET lock_timeout = '{_LOCK_WAIT_S}s'"))
            connection.commit()
            try:
                if _is_newer(connection, to):
                    _check_tables(connection)
                    return False
                _go_to(connection, to)
                return True
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
                connection.commit()
    except DBAPIError as error:
        if isinstance(error.orig, DuplicateTable | DuplicateObject | DuplicateColumn):
            expected = "expected an empty database, or one that our migrations have made; it has"
            found = str(error.orig.diag.message_primary)
            raise ConfigurationError(SETTING, f"{expected} its own: {found}") from None
        if isinstance(error.orig, _ABSENT):
            raise SchemaIncomplete(str(error.orig.diag.message_primary)) from None
        if (refusal := refusal_of(error.orig)) is None:
            raise
        raise refusal from None


def _check_encoding(connection: Connection) -> None:
    found = connection.execute(text("SELECT current_setting('server_encoding')")).scalar()
    if found not in ("UTF8", b"UTF8"):
        encoding = found.decode() if isinstance(found, bytes) else found
        raise ConfigurationError(
            SETTING, f"expected a database of encoding UTF8, not {encoding}: items have stars"
        )


def _check_tables(connection: Connection) -> None:
    """Raise SchemaIncomplete where a table of ours is not there, whatever the revision says."""
    query = text(
        "SELECT name FROM unnest(CAST(:names AS text[])) AS name WHERE to_regclass(name) IS NULL"
    )
    found = connection.execute(query, {"names": sorted(OrderRow.metadata.tables)}).scalars()
    if lacking := ", ".join(found):
        raise SchemaIncomplete(f"no {lacking}")


def _is_newer(connection: Connection, to: str) -> bool:
    """Say whether the schema is one of a later version. Raises SchemaUnknown where it is neither
    that nor one that our migrations have made, and where a part of it was to be taken back."""
    with connection.begin():
        if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
            return False
        # As text, whatever it is: some other application may use Alembic, too.
        query = "SELECT to_jsonb(v) ->> 'version_num' FROM alembic_version v ORDER BY 1"
        revisions = [str(revision) for (revision,) in connection.execute(text(query))]
    found = " and ".join(revisions)
    ours = {each.revision for each in ScriptDirectory.from_config(_config()).walk_revisions()}
    if not revisions or found in ours:
        return False
    if to != "head" or not schema.is_newer(found):
        raise SchemaUnknown(found, schema.HEAD)
    return True


def _go_to(connection: Connection, revision: str) -> None:
    """Change the schema in one transaction, again while others hold what it needs to lock."""
    move = command.upgrade if revision == "head" else command.downgrade
    for is_last in (*repeat(False, _TRIES - 1), True):
        try:
            connection.begin()  # or Alembic commits, whatever is missing then
            move(_config(connection), revision)
            if revision == "head":
                _check_tables(connection)
            connection.commit()
        except OperationalError as error:
            connection.rollback()
            # Of several tables traffic may have locked the last before it wants the first.
            if is_last or not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                raise
            time.sleep(_PAUSE_S)
        else:
            return
