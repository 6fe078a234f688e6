"""Ways to the newest entries of one actor, one action, one thing or one kind of thing in a long audit log."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("action", "actor", "entity"):
        op.create_index(f"ix_remotegpu_audit_log_{name}_at", "remotegpu_audit_log", [name, "at"])
    op.drop_index("ix_remotegpu_audit_log_entity", "remotegpu_audit_log")
    op.create_index("ix_remotegpu_audit_log_entity", "remotegpu_audit_log", ["entity", "entity_id", "at"])


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
