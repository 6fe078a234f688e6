"""Ends that come with the host being taken out of work."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

REASONS = (
    "user", "admin", "exited", "failed", "timeout", "ghost", "orphan", "idle", "budget", "quota", "evicted",
    "oom_killed", "node_lost", "pod_deleted", "image_pull_failed", "unschedulable",
)  # fmt: skip
NEW = "drained"
CHANGED = [("remotegpu_allocations", "end_reason"), ("remotegpu_deadlines", "reason")]


def rule(column: str, *reasons: str) -> str:
    return f"{column} IN ({', '.join(repr(one) for one in reasons)})"


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        rewrite(connection)
        return
    for table, column in CHANGED:
        name = op.f(f"ck_{table}_known_end_reason")
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, rule(column, *REASONS, NEW))


def rewrite(connection: sa.Connection) -> None:
    """Widen the rules where they stand, as revision 0003 does and for the same reason."""
    version = connection.execute(sa.text("PRAGMA schema_version")).scalar_one()
    connection.execute(sa.text("PRAGMA writable_schema=ON"))
    for table, column in CHANGED:
        done = connection.execute(
            sa.text(
                "UPDATE sqlite_master SET sql = replace(sql, :before, :after) WHERE type = 'table' AND name = :table"
            ),
            {"before": rule(column, *REASONS), "after": rule(column, *REASONS, NEW), "table": table},
        )
        if done.rowcount != 1:
            raise RuntimeError(f"{table} is not as it was made: restore the backup and tell us.")
    connection.execute(sa.text(f"PRAGMA schema_version={version + 1}"))
    connection.execute(sa.text("PRAGMA writable_schema=OFF"))


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
