"""Volumes: homes and shared ones, which outlive runs and count against the storage quota."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "remotegpu_volumes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "kind",
            sa.Enum("home", "shared", name="known_volume_kind", native_enum=False, create_constraint=True, length=20),
            nullable=False,
        ),
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(kind = 'home') = (user_id IS NOT NULL)", name=op.f("ck_remotegpu_volumes_homes_have_a_user")
        ),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_remotegpu_volumes_size_bytes_not_negative")),
        sa.ForeignKeyConstraint(["user_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_volumes_user_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_volumes_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_volumes")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_remotegpu_volumes_user_id", "remotegpu_volumes", ["user_id"])
    op.create_index(
        "uq_remotegpu_volumes_live",
        "remotegpu_volumes",
        ["workspace_id", sa.text("coalesce(user_id, 0)"), "kind"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
