"""Which schema this code expects; asked without Alembic, whose import takes a process longer."""

from fulfillment.errors import SchemaOutdated
from fulfillment.store.engine import Database

#: The newest of the migrations.
HEAD = "0010"


def is_current(database: Database) -> bool:
    """Say whether the database's schema is the one that this code expects.

    Raises ServerUnreachable.
    """
    try:
        with database.transaction() as session:
            return bool(session.scalar("SELECT version_num FROM alembic_version") == HEAD)
    except SchemaOutdated:
        return False
