"""Environments that run, start, stop or failed, by an index: few of all, and the ones that lists are asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    busy = sa.text("state <> 'stopped' AND state <> 'deleted'")
    op.create_index(
        "ix_remotegpu_environments_busy", "remotegpu_environments", ["state"], sqlite_where=busy, postgresql_where=busy
    )


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
