"""`remotegpu environments`: what users keep, what of it runs, and to start and stop it."""

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from traitlets import Bool, List

from .. import words
from ..errors import NotFound
from ..units import iso, show_bytes, show_thousandths
from .asking import Asking
from .command import Text, option, whole
from .money import parse_moment
from .offers import Choosing
from .stop import Usage
from .tables import Column, Row, printable, short


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


def _stops(run: Row) -> str:
    """When it will be stopped, and why."""
    return f"{short(run['stops_at'])}: {run['stops_message']}" if run["stops_at"] else "-"


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
    Column("STOPS", lambda row: _stops(row["run"]) if row["run"] else "-"),
]


class EnvironmentsList(Asking):
    name = "list"
    description = "List the environments that you may see, newest first, with what they hold and cost."
    examples = "remotegpu environments --running\nremotegpu environments list --workspace vision --json"
    workspace = option(Text(help="Only those of this workspace."), "workspace", "NAME")
    user = option(Text(help="Only those of this user."), "user", "NAME")
    host = option(Text(help="Only those that hold something of this host; for admins of the hub."), "host", "NAME")
    running = option(Bool(False, help="Only those that hold something now."), "running")

    def run(self) -> None:
        if self.host is not None and self.workspace is not None:
            raise Usage("--host and --workspace do not go together.")
        query = {"user": self.user, "running": True if self.running else None}
        self.show_rows("environments", self._rows(query), COLUMNS, empty="There are no such environments.")

    def _rows(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        if self.host is not None:
            return self.every("hosts/{host}/environments", query=query, host=self.host)
        if self.workspace is not None:
            return self.every("workspaces/{workspace}/environments", query=query, workspace=self.workspace)
        found = self.allowed(lambda: self.every("all-environments", query=query))
        return self.every("environments", query=query) if found is None else found


PATH = "environments/{id}"
RUNS = [
    Column("RUN", "allocation_id", right=True),
    Column("STATE", "state"),
    Column("HOST", "host"),
    Column("ASKED FOR", lambda row: short(row["requested_at"])),
    Column("BEGAN", lambda row: short(row["started_at"])),
    Column("ENDED", lambda row: short(row["ended_at"])),
    Column("WHY", "end_reason"),
]
ACCESS = [
    Column("SERVICE", "service"),
    Column("ADDRESS", "address"),
    Column("PASTE", lambda row: row["command"] or row["url"]),
    Column("BEHIND THE HUB'S LOGIN", "hub_path"),
]


class _One(Asking):
    """Works on one environment."""

    words = ("ID",)

    def ask_for(self, verb: str) -> bool:
        """Ask the hub; whether it is done already."""
        return bool(self.ask("POST", f"{PATH}/{verb}", id=self.number).value["done"])

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = self.read(PATH, id=self.number)
        return found

    @property
    def number(self) -> str:
        return str(whole(self.need(0), "ID"))


class EnvironmentsAccess(_One):
    name = "access"
    description = (
        "Show how the ports of a running environment are reached: what to paste, and the path below the hub's address "
        "that asks for the hub's login first (the image needs jupyter-server-proxy for it)."
    )
    examples = "remotegpu environments access 17"

    def run(self) -> None:
        run = self.shown()["run"]
        if run is None:
            raise NotFound("A running environment with this ID")
        self.show_rows("access", run["access"], ACCESS, empty="It has no ports: stop it and start it with some.")


class EnvironmentsCreate(Choosing):
    name = "create"
    words = ("NAME",)
    description = "Make an environment of yours and start it. What is not named is as the spawn page would fill it in."
    examples = (
        "remotegpu environments create train --workspace vision --gpu-model A100-80GB --gpus 2 --cpu 8 --memory 64G\n"
        "remotegpu environments create '论文' --flavor a100 --port ssh"
    )
    port = option(List(Text(), help="A port service that this hub offers, such as ssh."), "port", "SERVICE")

    def run(self) -> None:
        named = ("workspace", "image", "flavor", "gpu_model", "cpu", "memory")
        body = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        if self.gpus is not None:
            body["gpus"] = whole(self.gpus, "--gpus")
        if self.port:
            body["ports"] = list(self.port)
        self.needs_hub()
        made = self.create("environments", {"name": self.need(0), **body})
        if made["id"] is None:
            self.show_one(
                "environment", made, "The hub was asked for it: `remotegpu environments` shows it once it starts."
            )
            return
        sentence = f"Environment {made['id']} {'runs' if made['done'] else 'is starting'}."
        self.show_one("environment", self.read(PATH, id=str(made["id"])), sentence)


class EnvironmentsLogs(_One):
    name = "logs"
    hides = frozenset({"json", "config_file", "db_file"})
    description = "Print what an environment prints, of its run now or its last one."
    examples = "remotegpu environments logs 17 --tail 50\nremotegpu environments logs 17 -f --since 10m"
    follow = option(Bool(False, help="Go on with each line as it comes, until the run ends."), "follow", short="f")
    tail = option(Text(help="Lines from the end to begin with. Default: 200."), "tail", "LINES")
    since = option(
        Text(help="Nothing from before: `10m`, `2h`, `1d`, or a moment, ISO 8601. Only on a cluster."), "since", "WHEN"
    )
    older = option(Text(help="An older run, by its number."), "run", "RUN")

    def run(self) -> None:
        query = {
            "follow": "true" if self.follow else None,
            "tail": whole(self.tail, "--tail") if self.tail is not None else None,
            "since": iso(_before(self.since)) if self.since is not None else None,
            "run": whole(self.older, "--run") if self.older is not None else None,
        }
        for line in self.lines(f"{PATH}/logs", query=query, id=self.number):
            self.say(_plain(line) if sys.stdout.isatty() else line)
            sys.stdout.flush()


def _before(text: str) -> datetime:
    """A moment, or so long before now. Raises: Usage."""
    ago = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if ago is None:
        return parse_moment(text)
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[ago[2]]
    return datetime.now(UTC) - timedelta(**{unit: int(ago[1])})


def _plain(line: str) -> str:
    """Without colours, and without what would move the cursor."""
    return printable(re.sub(r"\x1b\[[0-9;]*m", "", line).expandtabs())


class EnvironmentsRuns(_One):
    name = "runs"
    description = "Show how the runs of an environment went, newest first, with why each ended."
    examples = "remotegpu environments runs 17"

    def run(self) -> None:
        rows = self.every(f"{PATH}/runs", id=self.number)
        self.show_rows("runs", rows, RUNS, empty="It has not run yet.")


class EnvironmentsStart(_One):
    name = "start"
    description = "Start an environment of yours as it is kept."
    examples = "remotegpu environments start 17"

    def run(self) -> None:
        done = self.ask_for("start")
        self.show_one("environment", self.shown(), f"Environment {self.number} {'runs' if done else 'is starting'}.")


class EnvironmentsStop(_One):
    name = "stop"
    description = "Stop an environment. What is not saved in it is lost; files in its home stay."
    examples = "remotegpu environments stop 17"

    def run(self) -> None:
        done = self.ask_for("stop")
        self.show_one("environment", self.shown(), f"Environment {self.number} {'stopped' if done else 'is stopping'}.")


class EnvironmentsRestart(_One):
    name = "restart"
    description = "Stop an environment of yours and start it again. Its GPUs may be somebody else's in between."
    examples = "remotegpu environments restart 17"

    def run(self) -> None:
        done = self.ask_for("restart")
        sentence = f"Environment {self.number} {'runs again' if done else 'is starting again'}."
        self.show_one("environment", self.shown(), sentence)


class EnvironmentsDelete(_One):
    name = "delete"
    description = (
        "Forget an environment of yours that has stopped, or as an admin of the hub anybody's: its name and choices. "
        "What it cost stays, and its home volume too, unless --volume gives that up."
    )
    examples = "remotegpu environments delete 17 --yes\nremotegpu environments delete 17 --volume --yes"
    volume = option(
        Bool(
            False,
            help="Give its home volume up too, with all that is in it; refused where other environments of its user "
            "in the workspace use it.",
        ),
        "volume",
    )
    yes = option(Bool(False, help="Really: it cannot be got back."), "yes")

    def run(self) -> None:
        if not self.yes:
            lost = f"Environment {self.number}{', and all files of its home volume,' if self.volume else ''}"
            raise Usage(f"{lost} could not be got back. Add --yes if that is meant.")
        row = self.shown()
        self.ask("DELETE", PATH, query={"volume": True if self.volume else None}, id=self.number)
        home = " with its home volume" if self.volume else ""
        self.show_one("environment", row, f"Environment {self.number} is deleted{home}.")


class Environments(EnvironmentsList):
    name = "environments"
    description = "What users keep, and what of it runs. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (EnvironmentsList, "list them with what they hold"),
        "access": (EnvironmentsAccess, "how the ports of one are reached"),
        "create": (EnvironmentsCreate, "make one and start it"),
        "logs": (EnvironmentsLogs, "what one prints"),
        "runs": (EnvironmentsRuns, "how the runs of one went"),
        "start": (EnvironmentsStart, "start one as it is kept"),
        "stop": (EnvironmentsStop, "stop one"),
        "restart": (EnvironmentsRestart, "stop one and start it again"),
        "delete": (EnvironmentsDelete, "forget one that has stopped"),
    }
