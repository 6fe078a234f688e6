"""What users ask for and are answered."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "remotegpu_quota_requests",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "scope",
            sa.Enum(
                "user",
                "workspace",
                "member",
                "user-default",
                "workspace-default",
                name="known_quota_scope",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("asker_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("wanted", sa.JSON(), nullable=False),
        sa.Column("reason", sa.String(length=1000), nullable=False),
        sa.Column("needed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "open",
                "approved",
                "refused",
                "withdrawn",
                name="known_request_state",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("granted", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("answer", sa.String(length=1000), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(length=255), nullable=True),
        sa.CheckConstraint(
            "(scope = 'user') = (workspace_id IS NULL)", name=op.f("ck_remotegpu_quota_requests_scope_names_workspace")
        ),
        sa.CheckConstraint(
            "(state = 'open') = (decided_at IS NULL)", name=op.f("ck_remotegpu_quota_requests_decided_when_not_open")
        ),
        sa.CheckConstraint(
            "scope IN ('user', 'workspace', 'member')", name=op.f("ck_remotegpu_quota_requests_scope_is_somebodys")
        ),
        sa.ForeignKeyConstraint(
            ["asker_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_quota_requests_asker_id")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_quota_requests_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_quota_requests")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_remotegpu_quota_requests_asker_id"), "remotegpu_quota_requests", ["asker_id"])
    op.create_index(op.f("ix_remotegpu_quota_requests_state_id"), "remotegpu_quota_requests", ["state", "id"])
    op.create_index(op.f("ix_remotegpu_quota_requests_workspace_id"), "remotegpu_quota_requests", ["workspace_id"])
    op.create_index(
        "uq_remotegpu_quota_requests_open",
        "remotegpu_quota_requests",
        ["scope", "asker_id", sa.text("coalesce(workspace_id, 0)")],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
