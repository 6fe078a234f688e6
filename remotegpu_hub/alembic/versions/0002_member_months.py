"""Keep each member's sums of a month, money and GPU time, instead of the workspace's money alone; and deadlines."""

from collections import Counter
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ALLOCATIONS = "remotegpu_allocations"
END_REASON = sa.Enum(
    *("user", "admin", "exited", "failed", "timeout", "ghost", "orphan", "idle", "budget", "quota"),
    name="known_end_reason",
    native_enum=False,
    create_constraint=True,
    length=20,
)
UNMETERED: dict[str, Any] = {"postgresql_where": sa.text("NOT metered"), "sqlite_where": sa.text("metered = 0")}
RESPELT = [
    ("uq_remotegpu_allocation_slots_open", "remotegpu_allocation_slots", ["slot_id"], True, "open = 1"),
    ("uq_remotegpu_port_mappings_open", "remotegpu_port_mappings", ["address", "protocol", "external_port"], True,
     "open = 1"),
    ("ix_remotegpu_gpu_slots_usable", "remotegpu_gpu_slots", ["host_id", "model"], False, "usable = 1"),
]  # fmt: skip
"""SQLite never used these: it wants the predicate spelt as the question is."""


def upgrade() -> None:
    op.create_table(
        "remotegpu_member_months",
        sa.Column("workspace_id", BIG_ID, nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("user_id", BIG_ID, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("gpu_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_member_months_user_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_member_months_workspace_id")
        ),
        sa.PrimaryKeyConstraint("workspace_id", "month", "user_id", name=op.f("pk_remotegpu_member_months")),
    )
    op.create_index("ix_remotegpu_member_months_user_id_month", "remotegpu_member_months", ["user_id", "month"])
    fill()
    op.create_table(
        "remotegpu_deadlines",
        sa.Column("allocation_id", BIG_ID, nullable=False),
        sa.Column("reason", END_REASON, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("message", sa.String(length=2000), nullable=False),
        sa.ForeignKeyConstraint(
            ["allocation_id"], ["remotegpu_allocations.id"], name=op.f("fk_remotegpu_deadlines_allocation_id")
        ),
        sa.PrimaryKeyConstraint("allocation_id", "reason", name=op.f("pk_remotegpu_deadlines")),
    )
    op.create_index("ix_remotegpu_deadlines_at", "remotegpu_deadlines", ["at"])
    op.drop_table("remotegpu_spend")
    for name in ("open_user", "open_workspace", "unmetered", "user_ended_at", "workspace_ended_at"):
        op.drop_index(f"ix_remotegpu_allocations_{name}", ALLOCATIONS)
    for name in ("user", "workspace"):
        op.create_index(f"ix_remotegpu_allocations_unmetered_{name}", ALLOCATIONS, [f"{name}_id"], **UNMETERED)
    if op.get_bind().dialect.name == "sqlite":
        for name, table, columns, unique, predicate in RESPELT:
            op.drop_index(name, table)
            op.create_index(name, table, columns, unique=unique, sqlite_where=sa.text(predicate))


def fill() -> None:
    """Sum the ledger as it stands. What it does not hold yet is added when it is metered."""
    connection = op.get_bind()
    months: Counter[tuple[int, str, int, str]] = Counter()
    rows = connection.execute(
        sa.text(
            "SELECT r.workspace_id, w.time_zone, r.user_id, r.start, r.amount, "
            "CASE WHEN r.resource LIKE 'gpu:%' THEN r.quantity * a.gpu_millis / a.gpu_slots ELSE 0 END "
            "FROM remotegpu_billing_records r JOIN remotegpu_workspaces w ON w.id = r.workspace_id "
            "LEFT JOIN remotegpu_allocations a ON r.subject_kind = 'allocation' AND a.id = r.subject_id"
        ).columns(
            sa.column("workspace_id", sa.BigInteger),
            sa.column("time_zone", sa.String),
            sa.column("user_id", sa.BigInteger),
            sa.column("start", sa.DateTime(timezone=True)),
            sa.column("amount", sa.BigInteger),
            sa.column("gpu_time", sa.BigInteger),
        )
    )
    for workspace_id, zone, user_id, start, amount, gpu_time in rows:
        moment = start if start.tzinfo is not None else start.replace(tzinfo=UTC)
        month = moment.astimezone(ZoneInfo(zone)).strftime("%Y-%m")
        months[workspace_id, month, user_id, "amount"] += amount
        months[workspace_id, month, user_id, "gpu_time"] += gpu_time or 0
    for workspace_id, month, user_id in sorted({key[:3] for key in months}):
        connection.execute(
            sa.text("INSERT INTO remotegpu_member_months VALUES (:workspace_id, :month, :user_id, :amount, :gpu_time)"),
            {
                "workspace_id": workspace_id,
                "month": month,
                "user_id": user_id,
                "amount": months[workspace_id, month, user_id, "amount"],
                "gpu_time": months[workspace_id, month, user_id, "gpu_time"],
            },
        )


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
