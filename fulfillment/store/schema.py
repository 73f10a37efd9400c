"""Which schema this code expects; asked without Alembic, whose import takes a process longer."""

import re

from fulfillment.errors import SchemaOutdated
from fulfillment.store.engine import Database

#: The newest of the migrations.
HEAD = "0023"
_REVISION = re.compile("[0-9]{4}")


def is_newer(revision: str) -> bool:
    """Say whether a version after this one has made it, by its number."""
    return _REVISION.fullmatch(revision) is not None and revision > HEAD


def is_current(database: Database) -> bool:
    """Say whether the database's schema has what this code expects.

    A newer one has: a migration takes nothing away that the code before it needs, so that old and
    new processes run side by side (docs/decisions/0014). Raises ServerUnreachable.
    """
    try:
        with database.transaction() as session:
            found = str(session.scalar("SELECT version_num FROM alembic_version") or "")
    except SchemaOutdated:
        return False
    return found == HEAD or is_newer(found)
