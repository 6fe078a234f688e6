"""What happened, and the webhooks that are told of it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "remotegpu_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), nullable=True),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("environment_id", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_events")),
        sa.UniqueConstraint("number", name=op.f("uq_remotegpu_events_number")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_remotegpu_events_untold",
        "remotegpu_events",
        ["id"],
        postgresql_where=sa.text("number IS NULL"),
        sqlite_where=sa.text("number IS NULL"),
    )
    op.create_index(op.f("ix_remotegpu_events_user_id"), "remotegpu_events", ["user_id"])
    op.create_index(op.f("ix_remotegpu_events_workspace_id"), "remotegpu_events", ["workspace_id"])
    op.create_table(
        "remotegpu_thresholds",
        sa.Column("what", sa.String(length=200), nullable=False),
        sa.Column("percent", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("what", name=op.f("pk_remotegpu_thresholds")),
    )
    op.create_table(
        "remotegpu_webhooks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("url", sa.String(length=2000), nullable=False),
        sa.Column("kinds", sa.JSON(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("salt", sa.String(length=64), nullable=False),
        sa.Column("check_of_secret", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_webhooks")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_remotegpu_webhooks_live",
        "remotegpu_webhooks",
        ["url"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "remotegpu_deliveries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("webhook_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "waiting",
                "delivered",
                "given up",
                name="known_delivery_state",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("give_up_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_try_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_status", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.String(length=200), nullable=False),
        sa.CheckConstraint("tries >= 0", name=op.f("ck_remotegpu_deliveries_tries_not_negative")),
        sa.ForeignKeyConstraint(["event_id"], ["remotegpu_events.id"], name=op.f("fk_remotegpu_deliveries_event_id")),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["remotegpu_webhooks.id"], name=op.f("fk_remotegpu_deliveries_webhook_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_deliveries")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_remotegpu_deliveries_created_at"), "remotegpu_deliveries", ["created_at"])
    op.create_index(
        op.f("ix_remotegpu_deliveries_event_id_webhook_id"),
        "remotegpu_deliveries",
        ["event_id", "webhook_id"],
        unique=True,
    )
    op.create_index(
        "ix_remotegpu_deliveries_waiting",
        "remotegpu_deliveries",
        ["webhook_id", "next_try_at"],
        postgresql_where=sa.text("state = 'waiting'"),
        sqlite_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        op.f("ix_remotegpu_deliveries_webhook_id_id"), "remotegpu_deliveries", ["webhook_id", "id"], unique=False
    )


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
