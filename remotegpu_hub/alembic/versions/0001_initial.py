"""initial"""

# ruff: noqa: PLR0915

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "remotegpu_attempts",
        sa.Column("attempt", sa.String(length=36), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("attempt", name=op.f("pk_remotegpu_attempts")),
    )
    op.create_index(op.f("ix_remotegpu_attempts_at"), "remotegpu_attempts", ["at"], unique=False)
    op.create_table(
        "remotegpu_audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("acted_as", sa.String(length=255), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("entity", sa.String(length=40), nullable=False),
        sa.Column("entity_id", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_audit_log")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_remotegpu_audit_log_at"), "remotegpu_audit_log", ["at"], unique=False)
    op.create_index("ix_remotegpu_audit_log_entity", "remotegpu_audit_log", ["entity", "entity_id"], unique=False)
    op.create_table(
        "remotegpu_facts",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_remotegpu_facts")),
    )
    op.create_table(
        "remotegpu_hosts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=253), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "online",
                "offline",
                "maintenance",
                name="known_host_status",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("cpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("gpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("used_cpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("used_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_gpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("used_environments", sa.BigInteger(), nullable=False),
        sa.Column("foreign_cpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("foreign_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("used_cpu_millis >= 0", name=op.f("ck_remotegpu_hosts_used_cpu_millis_not_negative")),
        sa.CheckConstraint("used_environments >= 0", name=op.f("ck_remotegpu_hosts_used_environments_not_negative")),
        sa.CheckConstraint("used_gpu_millis >= 0", name=op.f("ck_remotegpu_hosts_used_gpu_millis_not_negative")),
        sa.CheckConstraint("used_memory_bytes >= 0", name=op.f("ck_remotegpu_hosts_used_memory_bytes_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_hosts")),
        sa.UniqueConstraint("name", name=op.f("uq_remotegpu_hosts_name")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_remotegpu_hosts_status_score", "remotegpu_hosts", ["status", "score"], unique=False)
    op.create_index(
        "ix_remotegpu_hosts_status_used_environments", "remotegpu_hosts", ["status", "used_environments"], unique=False
    )
    op.create_table(
        "remotegpu_prices",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("resource", sa.String(length=100), nullable=False),
        sa.Column("unit_price", sa.BigInteger(), nullable=False),
        sa.Column("effective_from", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("unit_price >= 0", name=op.f("ck_remotegpu_prices_unit_price_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_prices")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_remotegpu_prices_resource_effective_from", "remotegpu_prices", ["resource", "effective_from"], unique=True
    )
    op.create_table(
        "remotegpu_tick_leases",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("holder", sa.String(length=100), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_done_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_remotegpu_tick_leases")),
    )
    op.create_table(
        "remotegpu_users",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hub_user_id", sa.BigInteger(), nullable=False),
        sa.Column("hub_created", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_users")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_remotegpu_users_name"), "remotegpu_users", ["name"], unique=False)
    op.create_index(
        "uq_remotegpu_users_hub_user_id_live",
        "remotegpu_users",
        ["hub_user_id"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "remotegpu_gpus",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("host_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("uuid", sa.String(length=80), nullable=False),
        sa.Column("model", sa.String(length=80), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "available",
                "maintenance",
                "error",
                name="known_gpu_status",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("foreign", sa.Boolean(), nullable=False),
        sa.Column("missing", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["remotegpu_hosts.id"], name=op.f("fk_remotegpu_gpus_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_gpus")),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_remotegpu_gpus_host_uuid", "remotegpu_gpus", ["host_id", "uuid"], unique=True)
    op.create_table(
        "remotegpu_host_models",
        sa.Column("model", sa.String(length=80), nullable=False),
        sa.Column("host_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("gpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("usable", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("gpu_millis >= 0", name=op.f("ck_remotegpu_host_models_gpu_millis_not_negative")),
        sa.CheckConstraint("usable >= 0", name=op.f("ck_remotegpu_host_models_usable_not_negative")),
        sa.CheckConstraint("used >= 0", name=op.f("ck_remotegpu_host_models_used_not_negative")),
        sa.ForeignKeyConstraint(["host_id"], ["remotegpu_hosts.id"], name=op.f("fk_remotegpu_host_models_host_id")),
        sa.PrimaryKeyConstraint("model", "host_id", name=op.f("pk_remotegpu_host_models")),
    )
    op.create_index(
        "ix_remotegpu_host_models_free",
        "remotegpu_host_models",
        ["model", "host_id"],
        unique=False,
        sqlite_where=sa.text("used < usable"),
        postgresql_where=sa.text("used < usable"),
    )
    op.create_index(op.f("ix_remotegpu_host_models_host_id"), "remotegpu_host_models", ["host_id"], unique=False)
    op.create_table(
        "remotegpu_workspaces",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("display_name", sa.String(length=255), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "personal",
                "team",
                "enterprise",
                name="known_workspace_kind",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "active",
                "archived",
                name="known_workspace_status",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("owner_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hub_group", sa.String(length=255), nullable=True),
        sa.Column("time_zone", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_workspaces_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_workspaces")),
        sa.UniqueConstraint("hub_group", name=op.f("uq_remotegpu_workspaces_hub_group")),
        sa.UniqueConstraint("name", name=op.f("uq_remotegpu_workspaces_name")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_remotegpu_workspaces_owner_id"), "remotegpu_workspaces", ["owner_id"], unique=False)
    op.create_table(
        "remotegpu_budgets",
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("warn_percent", sa.BigInteger(), nullable=False),
        sa.Column(
            "action",
            sa.Enum(
                "warn",
                "refuse",
                "stop",
                name="known_budget_action",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_remotegpu_budgets_amount_not_negative")),
        sa.CheckConstraint("warn_percent >= 0", name=op.f("ck_remotegpu_budgets_warn_percent_not_negative")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_budgets_workspace_id")
        ),
        sa.PrimaryKeyConstraint("workspace_id", name=op.f("pk_remotegpu_budgets")),
    )
    op.create_table(
        "remotegpu_flavors",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("display_name", sa.String(length=255), nullable=False),
        sa.Column("gpu_model", sa.String(length=80), nullable=True),
        sa.Column("gpu_slots", sa.BigInteger(), nullable=False),
        sa.Column("cpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.CheckConstraint("cpu_millis >= 0", name=op.f("ck_remotegpu_flavors_cpu_millis_not_negative")),
        sa.CheckConstraint("gpu_slots >= 0", name=op.f("ck_remotegpu_flavors_gpu_slots_not_negative")),
        sa.CheckConstraint("memory_bytes >= 0", name=op.f("ck_remotegpu_flavors_memory_bytes_not_negative")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_flavors_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_flavors")),
        sa.UniqueConstraint("name", name=op.f("uq_remotegpu_flavors_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "remotegpu_gpu_slots",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("gpu_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("host_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=80), nullable=False),
        sa.Column("gpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("usable", sa.Boolean(), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.CheckConstraint("gpu_millis >= 0", name=op.f("ck_remotegpu_gpu_slots_gpu_millis_not_negative")),
        sa.ForeignKeyConstraint(["gpu_id"], ["remotegpu_gpus.id"], name=op.f("fk_remotegpu_gpu_slots_gpu_id")),
        sa.ForeignKeyConstraint(["host_id"], ["remotegpu_hosts.id"], name=op.f("fk_remotegpu_gpu_slots_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_gpu_slots")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_remotegpu_gpu_slots_usable",
        "remotegpu_gpu_slots",
        ["host_id", "model"],
        unique=False,
        sqlite_where=sa.text("usable"),
        postgresql_where=sa.text("usable"),
    )
    op.create_index(
        "uq_remotegpu_gpu_slots_gpu_model_ordinal", "remotegpu_gpu_slots", ["gpu_id", "model", "ordinal"], unique=True
    )
    op.create_table(
        "remotegpu_images",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("reference", sa.String(length=512), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=True),
        sa.Column("display_name", sa.String(length=255), nullable=False),
        sa.Column("framework", sa.String(length=80), nullable=True),
        sa.Column("cuda_version", sa.String(length=20), nullable=True),
        sa.Column("python_version", sa.String(length=20), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("category", sa.String(length=40), nullable=False),
        sa.Column(
            "visibility",
            sa.Enum(
                "public",
                "workspace",
                "private",
                name="known_visibility",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("owner_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column(
            "status",
            sa.Enum(
                "active",
                "deprecated",
                "blocked",
                name="known_image_status",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("scan", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_images_owner_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_images_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_images")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_remotegpu_images_reference_digest",
        "remotegpu_images",
        ["reference", sa.literal_column("coalesce(digest, '')")],
        unique=True,
    )
    op.create_table(
        "remotegpu_quotas",
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
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("gpu_millis", sa.BigInteger(), nullable=True),
        sa.Column("cpu_millis", sa.BigInteger(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("storage_bytes", sa.BigInteger(), nullable=True),
        sa.Column("environments", sa.BigInteger(), nullable=True),
        sa.Column("gpu_hours", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("cpu_millis >= 0", name=op.f("ck_remotegpu_quotas_cpu_millis_not_negative")),
        sa.CheckConstraint("environments >= 0", name=op.f("ck_remotegpu_quotas_environments_not_negative")),
        sa.CheckConstraint("gpu_hours >= 0", name=op.f("ck_remotegpu_quotas_gpu_hours_not_negative")),
        sa.CheckConstraint("gpu_millis >= 0", name=op.f("ck_remotegpu_quotas_gpu_millis_not_negative")),
        sa.CheckConstraint("memory_bytes >= 0", name=op.f("ck_remotegpu_quotas_memory_bytes_not_negative")),
        sa.CheckConstraint("storage_bytes >= 0", name=op.f("ck_remotegpu_quotas_storage_bytes_not_negative")),
        sa.ForeignKeyConstraint(["user_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_quotas_user_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_quotas_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_quotas")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_remotegpu_quotas_user_id"), "remotegpu_quotas", ["user_id"], unique=False)
    op.create_index(op.f("ix_remotegpu_quotas_workspace_id"), "remotegpu_quotas", ["workspace_id"], unique=False)
    op.create_index(
        "uq_remotegpu_quotas_scope",
        "remotegpu_quotas",
        ["scope", sa.literal_column("coalesce(workspace_id, 0)"), sa.literal_column("coalesce(user_id, 0)")],
        unique=True,
    )
    op.create_table(
        "remotegpu_spend",
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_spend_workspace_id")
        ),
        sa.PrimaryKeyConstraint("workspace_id", "month", name=op.f("pk_remotegpu_spend")),
    )
    op.create_table(
        "remotegpu_workspace_members",
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "role",
            sa.Enum(
                "owner",
                "admin",
                "member",
                "viewer",
                name="known_role",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "active",
                "invited",
                "suspended",
                name="known_member_status",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("from_group", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_workspace_members_user_id")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_workspace_members_workspace_id")
        ),
        sa.PrimaryKeyConstraint("workspace_id", "user_id", name=op.f("pk_remotegpu_workspace_members")),
    )
    op.create_index(
        op.f("ix_remotegpu_workspace_members_user_id"), "remotegpu_workspace_members", ["user_id"], unique=False
    )
    op.create_table(
        "remotegpu_environments",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("server_name", sa.String(length=255), nullable=False),
        sa.Column("display_name", sa.String(length=255), nullable=False),
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("flavor", sa.String(length=64), nullable=True),
        sa.Column("gpu_model", sa.String(length=80), nullable=True),
        sa.Column("gpu_slots", sa.BigInteger(), nullable=False),
        sa.Column("cpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("ports", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "creating",
                "running",
                "stopping",
                "stopped",
                "error",
                "deleted",
                name="known_environment_state",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("message", sa.String(length=2000), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(gpu_slots = 0) = (gpu_model IS NULL)", name=op.f("ck_remotegpu_environments_gpus_have_a_model")
        ),
        sa.CheckConstraint("cpu_millis >= 0", name=op.f("ck_remotegpu_environments_cpu_millis_not_negative")),
        sa.CheckConstraint("gpu_slots >= 0", name=op.f("ck_remotegpu_environments_gpu_slots_not_negative")),
        sa.CheckConstraint("memory_bytes >= 0", name=op.f("ck_remotegpu_environments_memory_bytes_not_negative")),
        sa.ForeignKeyConstraint(["image_id"], ["remotegpu_images.id"], name=op.f("fk_remotegpu_environments_image_id")),
        sa.ForeignKeyConstraint(["user_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_environments_user_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_environments_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_environments")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_remotegpu_environments_workspace_id"), "remotegpu_environments", ["workspace_id"], unique=False
    )
    op.create_index(
        "uq_remotegpu_environments_live",
        "remotegpu_environments",
        ["user_id", "server_name"],
        unique=True,
        sqlite_where=sa.text("state <> 'deleted'"),
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.create_table(
        "remotegpu_quota_gpu_models",
        sa.Column("quota_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model", sa.String(length=80), nullable=False),
        sa.Column("slots", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("slots >= 0", name=op.f("ck_remotegpu_quota_gpu_models_slots_not_negative")),
        sa.ForeignKeyConstraint(
            ["quota_id"],
            ["remotegpu_quotas.id"],
            name=op.f("fk_remotegpu_quota_gpu_models_quota_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("quota_id", "model", name=op.f("pk_remotegpu_quota_gpu_models")),
    )
    op.create_table(
        "remotegpu_allocations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("environment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt", sa.String(length=36), nullable=False),
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("host_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("gpu_model", sa.String(length=80), nullable=True),
        sa.Column("gpu_slots", sa.BigInteger(), nullable=False),
        sa.Column("gpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("cpu_millis", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("image_reference", sa.String(length=512), nullable=False),
        sa.Column("image_digest", sa.String(length=80), nullable=True),
        sa.Column("price_per_hour", sa.BigInteger(), nullable=False),
        sa.Column("prices", sa.JSON(), nullable=False),
        sa.Column("mark", sa.String(length=80), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "admitted",
                "active",
                "ending",
                "ended",
                name="known_allocation_state",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("admitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ending_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("metered_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("metered", sa.Boolean(), nullable=False),
        sa.Column(
            "end_reason",
            sa.Enum(
                "user",
                "admin",
                "exited",
                "failed",
                "timeout",
                "ghost",
                "orphan",
                "idle",
                "budget",
                "quota",
                name="known_end_reason",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=True,
        ),
        sa.CheckConstraint(
            "(state = 'ended') = (ended_at IS NOT NULL)", name=op.f("ck_remotegpu_allocations_ended_has_an_end")
        ),
        sa.CheckConstraint("cpu_millis >= 0", name=op.f("ck_remotegpu_allocations_cpu_millis_not_negative")),
        sa.CheckConstraint("gpu_millis >= 0", name=op.f("ck_remotegpu_allocations_gpu_millis_not_negative")),
        sa.CheckConstraint("gpu_slots >= 0", name=op.f("ck_remotegpu_allocations_gpu_slots_not_negative")),
        sa.CheckConstraint("memory_bytes >= 0", name=op.f("ck_remotegpu_allocations_memory_bytes_not_negative")),
        sa.CheckConstraint("price_per_hour >= 0", name=op.f("ck_remotegpu_allocations_price_per_hour_not_negative")),
        sa.CheckConstraint(
            "started_at IS NULL OR ended_at IS NULL OR started_at <= ended_at",
            name=op.f("ck_remotegpu_allocations_ends_after_start"),
        ),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["remotegpu_environments.id"], name=op.f("fk_remotegpu_allocations_environment_id")
        ),
        sa.ForeignKeyConstraint(["host_id"], ["remotegpu_hosts.id"], name=op.f("fk_remotegpu_allocations_host_id")),
        sa.ForeignKeyConstraint(["user_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_allocations_user_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_allocations_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_allocations")),
        sa.UniqueConstraint("attempt", name=op.f("uq_remotegpu_allocations_attempt")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_remotegpu_allocations_environment_id", "remotegpu_allocations", ["environment_id"], unique=False
    )
    op.create_index(
        "ix_remotegpu_allocations_open_host",
        "remotegpu_allocations",
        ["host_id"],
        unique=False,
        sqlite_where=sa.text("state <> 'ended'"),
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.create_index(
        "ix_remotegpu_allocations_open_user",
        "remotegpu_allocations",
        ["user_id"],
        unique=False,
        sqlite_where=sa.text("state <> 'ended'"),
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.create_index(
        "ix_remotegpu_allocations_open_workspace",
        "remotegpu_allocations",
        ["workspace_id"],
        unique=False,
        sqlite_where=sa.text("state <> 'ended'"),
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.create_index(
        "ix_remotegpu_allocations_unmetered",
        "remotegpu_allocations",
        ["workspace_id", "id"],
        unique=False,
        sqlite_where=sa.text("NOT metered"),
        postgresql_where=sa.text("NOT metered"),
    )
    op.create_index(
        "ix_remotegpu_allocations_user_ended_at", "remotegpu_allocations", ["user_id", "ended_at"], unique=False
    )
    op.create_index(
        "ix_remotegpu_allocations_workspace_ended_at",
        "remotegpu_allocations",
        ["workspace_id", "ended_at"],
        unique=False,
    )
    op.create_index(
        "uq_remotegpu_allocations_open",
        "remotegpu_allocations",
        ["environment_id"],
        unique=True,
        sqlite_where=sa.text("state <> 'ended'"),
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.create_table(
        "remotegpu_billing_records",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("workspace_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("environment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column(
            "subject_kind",
            sa.Enum(
                "allocation", "volume", name="known_subject_kind", native_enum=False, create_constraint=True, length=20
            ),
            nullable=False,
        ),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("resource", sa.String(length=100), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("price_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("unit_price", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "usage",
                "credit",
                "correction",
                name="known_record_kind",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("corrects_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(kind = 'correction') = (corrects_id IS NOT NULL)",
            name=op.f("ck_remotegpu_billing_records_correction_names_what"),
        ),
        sa.CheckConstraint('start < "end"', name=op.f("ck_remotegpu_billing_records_period_not_empty")),
        sa.ForeignKeyConstraint(
            ["corrects_id"], ["remotegpu_billing_records.id"], name=op.f("fk_remotegpu_billing_records_corrects_id")
        ),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["remotegpu_environments.id"], name=op.f("fk_remotegpu_billing_records_environment_id")
        ),
        sa.ForeignKeyConstraint(
            ["price_id"], ["remotegpu_prices.id"], name=op.f("fk_remotegpu_billing_records_price_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["remotegpu_users.id"], name=op.f("fk_remotegpu_billing_records_user_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["remotegpu_workspaces.id"], name=op.f("fk_remotegpu_billing_records_workspace_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_billing_records")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_remotegpu_billing_records_workspace_start",
        "remotegpu_billing_records",
        ["workspace_id", "start"],
        unique=False,
    )
    op.create_index(
        "uq_remotegpu_billing_records_usage",
        "remotegpu_billing_records",
        ["subject_kind", "subject_id", "resource", "start", "price_id"],
        unique=True,
        sqlite_where=sa.text("kind = 'usage'"),
        postgresql_where=sa.text("kind = 'usage'"),
    )
    op.create_table(
        "remotegpu_allocation_slots",
        sa.Column("allocation_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("slot_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("observed_uuid", sa.String(length=80), nullable=True),
        sa.ForeignKeyConstraint(
            ["allocation_id"], ["remotegpu_allocations.id"], name=op.f("fk_remotegpu_allocation_slots_allocation_id")
        ),
        sa.ForeignKeyConstraint(
            ["slot_id"], ["remotegpu_gpu_slots.id"], name=op.f("fk_remotegpu_allocation_slots_slot_id")
        ),
        sa.PrimaryKeyConstraint("allocation_id", "slot_id", name=op.f("pk_remotegpu_allocation_slots")),
    )
    op.create_index(
        "uq_remotegpu_allocation_slots_open",
        "remotegpu_allocation_slots",
        ["slot_id"],
        unique=True,
        sqlite_where=sa.text("open"),
        postgresql_where=sa.text("open"),
    )
    op.create_table(
        "remotegpu_port_mappings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("allocation_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "service",
            sa.Enum(
                "ssh",
                "jupyter",
                "vscode",
                "tensorboard",
                "custom",
                name="known_port_service",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("protocol", sa.String(length=4), nullable=False),
        sa.Column("address", sa.String(length=253), nullable=False),
        sa.Column("internal_port", sa.BigInteger(), nullable=False),
        sa.Column("external_port", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.String(length=512), nullable=True),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "external_port BETWEEN 1 AND 65535", name=op.f("ck_remotegpu_port_mappings_external_port_exists")
        ),
        sa.CheckConstraint(
            "internal_port BETWEEN 1 AND 65535", name=op.f("ck_remotegpu_port_mappings_internal_port_exists")
        ),
        sa.ForeignKeyConstraint(
            ["allocation_id"], ["remotegpu_allocations.id"], name=op.f("fk_remotegpu_port_mappings_allocation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remotegpu_port_mappings")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_remotegpu_port_mappings_allocation_id"), "remotegpu_port_mappings", ["allocation_id"], unique=False
    )
    op.create_index(
        "uq_remotegpu_port_mappings_open",
        "remotegpu_port_mappings",
        ["address", "protocol", "external_port"],
        unique=True,
        sqlite_where=sa.text("open"),
        postgresql_where=sa.text("open"),
    )
    dialect = op.get_bind().dialect.name
    if dialect == "sqlite":
        op.execute(
            """CREATE TRIGGER remotegpu_billing_records_no_update BEFORE UPDATE ON remotegpu_billing_records
BEGIN SELECT RAISE(ABORT, 'billing records are append-only: write a correction'); END"""
        )
        op.execute(
            """CREATE TRIGGER remotegpu_billing_records_no_delete BEFORE DELETE ON remotegpu_billing_records
BEGIN SELECT RAISE(ABORT, 'billing records are append-only: write a correction'); END"""
        )
    if dialect == "postgresql":
        op.execute(
            """CREATE FUNCTION remotegpu_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'billing records are append-only: write a correction' USING ERRCODE = 'restrict_violation';
END $$"""
        )
        op.execute(
            """CREATE TRIGGER remotegpu_billing_records_append_only BEFORE UPDATE OR DELETE ON remotegpu_billing_records
FOR EACH ROW EXECUTE FUNCTION remotegpu_refuse_change()"""
        )
        op.execute(
            """CREATE TRIGGER remotegpu_billing_records_no_truncate BEFORE TRUNCATE ON remotegpu_billing_records
FOR EACH STATEMENT EXECUTE FUNCTION remotegpu_refuse_change()"""
        )


def downgrade() -> None:
    raise NotImplementedError("A ledger is not taken back: restore the backup that was made before the upgrade.")
