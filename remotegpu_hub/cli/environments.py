"""`remotegpu environments`: what users keep, and what of it runs."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload
from traitlets import Bool

from .. import plain, words
from ..domain import environments, ports, prices, users, workspaces
from ..errors import NotFound
from ..orm import Allocation, AllocationSlot, AllocationState, Deadline
from ..units import show_bytes, show_thousandths
from .command import Command, Text, option, whole
from .tables import Column, Row, short


def _run(name: str) -> Any:
    def cell(row: Row) -> Any:
        return row["run"][name] if row["run"] else None

    return cell


def _resources(row: Row) -> str:
    gpus = f"{row['gpu_slots']} × {row['gpu_model']}, " if row["gpu_slots"] else ""
    return f"{gpus}{show_thousandths(row['cpu_millis'])} cores, {show_bytes(row['memory_bytes'])}"


def _price(row: Row) -> str | None:
    run = row["run"]
    return words.money(run["price_per_hour_micros"], run["currency"], "en") if run else None


COLUMNS = [
    Column("ID", "id", right=True),
    Column("USER", "user"),
    Column("SERVER", lambda row: row["server_name"] or "(default)"),
    Column("NAME", "display_name"),
    Column("WORKSPACE", "workspace"),
    Column("RESOURCES", _resources),
    Column("STATE", "state"),
    Column("HOST", _run("host")),
    Column("AN HOUR", _price, right=True),
    Column("SINCE", lambda row: short(row["run"]["started_at"]) if row["run"] else "-"),
    Column("STOPS", lambda row: short(row["run"]["stops_at"]) if row["run"] else "-"),
]


def listed(session: Session) -> list[dict[str, Any]]:
    """Every environment that was not deleted, newest first, each with what it holds now."""
    held = (selectinload(Allocation.slots).selectinload(AllocationSlot.slot),)
    runs = {
        one.environment_id: one
        for one in session.scalars(select(Allocation).where(Allocation.state != AllocationState.ENDED).options(*held))
    }
    currency = prices.currency(session)
    earliest = select(Deadline.allocation_id, func.min(Deadline.at)).group_by(Deadline.allocation_id)
    ends = dict(session.execute(earliest).tuples().all())
    rows = []
    for one in environments.all_live(session):
        run = runs.get(one.id)
        rows.append(plain.environment(one, run, ends.get(run.id) if run else None, currency))
    return rows


class EnvironmentsList(Command):
    name = "list"
    description = "List the environments, newest first, with what they hold and cost."
    examples = "remotegpu environments --running\nremotegpu environments list --workspace vision --json"
    workspace = option(Text(help="Only those of this workspace."), "workspace", "NAME")
    user = option(Text(help="Only those of this user."), "user", "NAME")
    running = option(Bool(False, help="Only those that hold something now."), "running")

    def run(self) -> None:
        with self.transaction(read_only=True) as session:
            if self.workspace is not None:
                workspaces.by_name(session, name=self.workspace)
            if self.user is not None:
                users.by_name(session, name=self.user)
            rows = [
                row
                for row in listed(session)
                if self.workspace in (None, row["workspace"])
                and self.user in (None, row["user"])
                and (row["run"] is not None or not self.running)
            ]
        self.show_rows("environments", rows, COLUMNS, empty="There are no such environments.")


ACCESS = [
    Column("SERVICE", "service"),
    Column("ADDRESS", "address"),
    Column("PASTE", lambda row: row["command"] or row["url"]),
    Column("BEHIND THE HUB'S LOGIN", "hub_path"),
]


class EnvironmentsAccess(Command):
    name = "access"
    words = ("ID",)
    description = (
        "Show how the ports of a running environment are reached: what to paste, and the path below the hub's address "
        "that asks for the hub's login first (the image needs jupyter-server-proxy for it)."
    )
    examples = "remotegpu environments access 17"

    def run(self) -> None:
        number = whole(self.need(0), "ID")
        running = self.place.running
        with self.transaction(read_only=True) as session:
            run = session.scalar(
                select(Allocation).where(
                    Allocation.environment_id == number, Allocation.state != AllocationState.ENDED
                )
            )  # fmt: skip
            if run is None:
                raise NotFound("A running environment with this ID")
            rows = [asdict(one) for one in ports.ways(run, login=running.ssh_user if running else "USER")]
        self.show_rows("access", rows, ACCESS, empty="It has no ports: stop it and start it with some.")


class Environments(EnvironmentsList):
    name = "environments"
    description = "What users keep, and what of it runs. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (EnvironmentsList, "list them with what they hold"),
        "access": (EnvironmentsAccess, "how the ports of one are reached"),
    }
