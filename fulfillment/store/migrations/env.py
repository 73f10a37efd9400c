"""Alembic's environment; `fulfillment migrate` is the way to run it."""

from alembic import context
from sqlmodel import SQLModel

from schemas import tables

assert tables.OrderRow.metadata is SQLModel.metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
