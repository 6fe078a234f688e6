"""Until when an invitation may be accepted, and who made it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLE, OLD = "remotegpu_workspace_members", "remotegpu_workspace_members_old"
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEPT = "workspace_id, user_id, role, status, from_group, created_at"
RULE = "status = 'invited' OR (invited_until IS NULL AND invited_by IS NULL)"


def one_of(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=20)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        rewrite()
        return
    op.add_column(TABLE, sa.Column("invited_until", sa.DateTime(timezone=True)))
    op.add_column(TABLE, sa.Column("invited_by", sa.String(length=255)))
    op.create_check_constraint(op.f(f"ck_{TABLE}_invitation_is_open"), TABLE, RULE)


def rewrite() -> None:
    """Make the table anew: SQLite adds no rule to one that is there."""
    op.drop_index(op.f(f"ix_{TABLE}_user_id"), TABLE)
    op.rename_table(TABLE, OLD)
    op.create_table(
        TABLE,
        sa.Column("workspace_id", BIG_ID, nullable=False),
        sa.Column("user_id", BIG_ID, nullable=False),
        sa.Column("role", one_of("known_role", "owner", "admin", "member", "viewer"), nullable=False),
        sa.Column("status", one_of("known_member_status", "active", "invited", "suspended"), nullable=False),
        sa.Column("from_group", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("invited_until", sa.DateTime(timezone=True)),
        sa.Column("invited_by", sa.String(length=255)),
        sa.CheckConstraint(RULE, name=op.f(f"ck_{TABLE}_invitation_is_open")),
        sa.ForeignKeyConstraint(["user_id"], ["remotegpu_users.id"], name=op.f(f"fk_{TABLE}_user_id")),
        sa.ForeignKeyConstraint(["workspace_id"], ["remotegpu_workspaces.id"], name=op.f(f"fk_{TABLE}_workspace_id")),
        sa.PrimaryKeyConstraint("workspace_id", "user_id", name=op.f(f"pk_{TABLE}")),
    )
    op.execute(f"INSERT INTO {TABLE} ({KEPT}) SELECT {KEPT} FROM {OLD}")
    op.drop_table(OLD)
    op.create_index(op.f(f"ix_{TABLE}_user_id"), TABLE, ["user_id"])


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
