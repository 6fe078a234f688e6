"""The base of all tables: names of constraints, time in UTC, ids that are never used twice."""

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, DateTime, Dialect, Enum, Integer, MetaData, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PREFIX = "remotegpu_"


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out on both databases; a naive time is a bug and raises."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("times are aware UTC")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: UTCDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
        int: BigInteger,
    }


BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite gives ids only to columns of exactly this type."""

NO_REUSE = {"sqlite_autoincrement": True}
"""Without it SQLite gives the id of a deleted last row to the next one."""


def locked(query: Any) -> Any:
    """The rows of a query as they are once nobody else changes them, also where the session has read them before; held
    still until the transaction ends, though others may refer to them."""
    return query.with_for_update(key_share=True).execution_options(populate_existing=True)


class HasId:
    id: Mapped[int] = mapped_column(BigId, primary_key=True, sort_order=-10)


def one_of(kind: type[StrEnum]) -> Enum:
    """Store an enum by its value, in a named CHECK that both databases keep."""
    name = "".join("_" + c.lower() if c.isupper() else c for c in kind.__name__).lstrip("_")
    return Enum(
        kind,
        native_enum=False,
        length=20,
        create_constraint=True,
        name=f"known_{name}",
        values_callable=lambda members: [m.value for m in members],
    )


def not_negative(columns: Iterable[str]) -> list[CheckConstraint]:
    return [CheckConstraint(f"{column} >= 0", name=f"{column}_not_negative") for column in columns]
