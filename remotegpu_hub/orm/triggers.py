"""What keeps the ledger append-only in the database itself, whoever writes to it.

Models carry it so that `create_all` makes it; the migrations spell it out again, and a test compares the two.
"""

from typing import Final

from sqlalchemy import DDL, event

from .money import BillingRecord

APPEND_ONLY: Final[dict[str, tuple[str, ...]]] = {
    "sqlite": (
        """CREATE TRIGGER remotegpu_billing_records_no_update BEFORE UPDATE ON remotegpu_billing_records
BEGIN SELECT RAISE(ABORT, 'billing records are append-only: write a correction'); END""",
        """CREATE TRIGGER remotegpu_billing_records_no_delete BEFORE DELETE ON remotegpu_billing_records
BEGIN SELECT RAISE(ABORT, 'billing records are append-only: write a correction'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION remotegpu_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'billing records are append-only: write a correction' USING ERRCODE = 'restrict_violation';
END $$""",
        """CREATE TRIGGER remotegpu_billing_records_append_only BEFORE UPDATE OR DELETE ON remotegpu_billing_records
FOR EACH ROW EXECUTE FUNCTION remotegpu_refuse_change()""",
        """CREATE TRIGGER remotegpu_billing_records_no_truncate BEFORE TRUNCATE ON remotegpu_billing_records
FOR EACH STATEMENT EXECUTE FUNCTION remotegpu_refuse_change()""",
    ),
}
"""Statements that make the triggers, by dialect. Both databases answer a change with an integrity error."""

for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        event.listen(BillingRecord.__table__, "after_create", DDL(_statement).execute_if(dialect=_dialect))  # type: ignore[no-untyped-call]
event.listen(
    BillingRecord.__table__,
    "after_drop",
    DDL("DROP FUNCTION remotegpu_refuse_change()").execute_if(dialect="postgresql"),  # type: ignore[no-untyped-call]
)
