"""Run by alembic inside the transaction that `migrations` opened; never connects by itself."""

from alembic import context

from remotegpu_hub.orm import PREFIX, Base

attributes = context.config.attributes


def ours(name: str | None, kind: str, _parents: object) -> bool:
    """Look only at our own tables: the hub's live in the same database."""
    return kind != "table" or (name or "").startswith(PREFIX)


context.configure(
    connection=attributes["connection"],
    version_table=attributes["version_table"],
    target_metadata=Base.metadata,
    include_name=ours,
    render_as_batch=True,
    render_item=attributes.get("render_item"),
)
with context.begin_transaction():
    context.run_migrations()
