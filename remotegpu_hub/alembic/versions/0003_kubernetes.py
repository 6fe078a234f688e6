"""Ends that only a cluster knows, and images whose reference means another digest now."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

REASONS = ("user", "admin", "exited", "failed", "timeout", "ghost", "orphan", "idle", "budget", "quota")
NEW_REASONS = ("evicted", "oom_killed", "node_lost", "pod_deleted", "image_pull_failed", "unschedulable")
STATUSES, NEW_STATUSES = ("active", "deprecated", "blocked"), ("retired",)
CHANGED = [
    ("remotegpu_allocations", "end_reason", "known_end_reason", REASONS, NEW_REASONS),
    ("remotegpu_deadlines", "reason", "known_end_reason", REASONS, NEW_REASONS),
    ("remotegpu_images", "status", "known_image_status", STATUSES, NEW_STATUSES),
]


def spelt(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        rewrite()
        return
    for table, column, rule, before, new in CHANGED:
        name = op.f(f"ck_{table}_{rule}")
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, f"{column} IN ({spelt(before + new)})")


def rewrite() -> None:
    """Widen the rules where they stand: SQLite has no ALTER for them, and its own manual names this way for rules that
    every row keeps (https://www.sqlite.org/lang_altertable.html, "making other kinds of changes")."""
    connection = op.get_bind()
    version = connection.execute(sa.text("PRAGMA schema_version")).scalar_one()
    connection.execute(sa.text("PRAGMA writable_schema=ON"))
    for table, column, _rule, before, new in CHANGED:
        done = connection.execute(
            sa.text(
                "UPDATE sqlite_master SET sql = replace(sql, :before, :after) WHERE type = 'table' AND name = :table"
            ),
            {
                "before": f"{column} IN ({spelt(before)})",
                "after": f"{column} IN ({spelt(before + new)})",
                "table": table,
            },
        )
        if done.rowcount != 1:
            raise RuntimeError(f"{table} is not as it was made: restore the backup and tell us.")
    connection.execute(sa.text(f"PRAGMA schema_version={version + 1}"))
    connection.execute(sa.text("PRAGMA writable_schema=OFF"))


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
