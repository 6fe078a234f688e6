"""`remotegpu policy dry-run`: who would have been refused in a past month under other limits."""

from datetime import UTC, datetime, timedelta
from typing import Any

from traitlets import List

from .. import words
from .asking import Asking
from .command import Command, Text, option, whole
from .quotas import LIMITS, parse_limits
from .stop import Usage
from .tables import Column, Row, dump, printable, short, table

MODEL = "gpu:"
"""What a limit on the slots of one GPU model begins with."""
SHARE = [Column("STARTS", "starts", right=True), Column("REFUSED", "refused", right=True)]
LIMIT_COLUMNS = [Column("LIMIT OF EACH", "scope"), Column("ON", "resource"), Column("REFUSED", "refused", right=True)]


def _breach(one: Row) -> str:
    held, wanted, limit = (words.bare(one["resource"], one[name]) for name in ("held", "wanted", "limit"))
    return f"{one['resource']} of the {one['scope']}: {held} held, {wanted} wanted, {limit} allowed"


FIRST_COLUMNS = [
    Column("AT", lambda row: short(row["at"])),
    Column("USER", "user"),
    Column("WORKSPACE", "workspace"),
    Column("ENVIRONMENT", "environment"),
    Column("WHY", lambda row: "; ".join(_breach(one) for one in row["breaches"])),
]


def read_limits(typed: list[str]) -> dict[str, Any]:
    """Read `gpus=4 gpu:A100-80GB=2`. Raises: Usage, Invalid."""
    models = {}
    for text in (one for one in typed if one.startswith(MODEL)):
        model, equals, slots = text.removeprefix(MODEL).rpartition("=")
        if not (equals and model):
            raise Usage(f"`{text}` is not a limit of a model: write one such as gpu:A100-80GB=2.")
        models[model] = whole(slots, model)
    limits = parse_limits([one for one in typed if not one.startswith(MODEL)])
    if not all(isinstance(value, int) for value in limits.values()):
        raise Usage("Write a number: what is not named does not limit.")
    return {**limits, "models": models}


def _month_before() -> str:
    return f"{datetime.now(UTC).replace(day=1) - timedelta(days=1):%Y-%m}"


class DryRun(Asking):
    name = "dry-run"
    description = (
        "Say which starts of a past month would have been refused under other limits, of each user or of each "
        f"workspace. LIMIT is {', '.join(LIMITS)}, or gpu:MODEL for the slots of one model. Nothing is changed. For "
        "admins of the hub."
    )
    examples = (
        "remotegpu policy dry-run --user gpus=4 --workspace gpu_hours=2000\n"
        "remotegpu policy dry-run --month 2026-10 --user gpu:A100-80GB=2 --user storage=200G --json"
    )
    month = option(Text(help="Such as 2026-10, in UTC. Default: the last whole month."), "month", "MONTH")
    user = option(List(Text(), help="What each user may hold everywhere."), "user", "LIMIT=VALUE")
    workspace = option(List(Text(), help="What each workspace may hold."), "workspace", "LIMIT=VALUE")

    def run(self) -> None:
        body = {
            "month": self.month or _month_before(),
            "user": read_limits(list(self.user)),
            "workspace": read_limits(list(self.workspace)),
        }
        found = self.ask("POST", "policy/dry-run", body=body).value
        if self.json:
            self.say(dump({"dry_run": found}))
            return
        self.say(printable(f"{found['refused']} of {found['starts']} starts of {found['month']} are refused."))
        for columns, rows in (
            (LIMIT_COLUMNS, found["limits"]),
            ([Column("USER", "name"), *SHARE], found["users"]),
            ([Column("WORKSPACE", "name"), *SHARE], found["workspaces"]),
            (FIRST_COLUMNS, found["first"]),
        ):
            if rows:
                self.say("\n" + table(columns, rows))


class Policy(Command):
    name = "policy"
    description = "Try limits before they are set."
    hides = frozenset({"json", "config_file", "db_file"})
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "dry-run": (DryRun, "who would have been refused in a past month"),
    }

    def run(self) -> None:
        self.print_help()
        raise Usage("Write a command: dry-run.")
