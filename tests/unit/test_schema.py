"""The schema that processes expect is the one that the migrations make."""

from alembic.script import ScriptDirectory

from fulfillment.store import migrate, schema


def test_the_expected_schema_is_the_newest_migration() -> None:
    migrations = ScriptDirectory(str(migrate.MIGRATIONS))

    assert migrations.get_current_head() == schema.HEAD
