"""Long lists of environments by name and by workspace, the newest run of each, and what a run cost, by an index."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

LIVE: dict[str, Any] = {
    "sqlite_where": sa.text("state <> 'deleted'"),
    "postgresql_where": sa.text("state <> 'deleted'"),
}


def upgrade() -> None:
    op.drop_index("ix_remotegpu_environments_workspace_id", "remotegpu_environments")
    op.create_index("ix_remotegpu_environments_workspace_id_id", "remotegpu_environments", ["workspace_id", "id"])
    op.create_index("ix_remotegpu_environments_live_name", "remotegpu_environments", ["display_name", "id"], **LIVE)
    op.create_index(
        "ix_remotegpu_environments_live_name_of_workspace",
        "remotegpu_environments",
        ["workspace_id", "display_name", "id"],
        **LIVE,
    )
    op.drop_index("ix_remotegpu_allocations_environment_id", "remotegpu_allocations")
    op.create_index("ix_remotegpu_allocations_environment_id_id", "remotegpu_allocations", ["environment_id", "id"])
    op.create_index(
        "ix_remotegpu_billing_records_no_usage",
        "remotegpu_billing_records",
        ["subject_kind", "subject_id"],
        sqlite_where=sa.text("kind <> 'usage'"),
        postgresql_where=sa.text("kind <> 'usage'"),
    )


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
