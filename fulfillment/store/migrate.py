"""Bring the database's schema up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from fulfillment.errors import ServerUnreachable
from fulfillment.store.engine import SETTING, Database

MIGRATIONS = Path(__file__).parent / "migrations"
# Any number that nobody else on this database locks: only one process migrates at a time.
_LOCK = 7_305_119_402


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # Alembic reads "%" as the start of a variable, and paths may have one.
    here = str(MIGRATIONS).replace("%", "%%")
    config.set_main_option("script_location", here)
    config.set_main_option("path_separator", "newline")
    config.attributes["connection"] = connection
    return config


def migrate(database: Database) -> None:
    """Run all migrations that are missing. Raises ServerUnreachable."""
    try:
        with database.engine.connect() as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
            connection.commit()
            try:
                command.upgrade(_config(connection), "head")
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
                connection.commit()
    except OperationalError as error:
        raise ServerUnreachable("PostgreSQL", SETTING, type(error.orig).__name__) from None
