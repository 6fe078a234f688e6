"""`remotegpu quotas`: what users, workspaces, and members inside a workspace may hold at once or use in a month."""

from collections.abc import Callable
from typing import Any, Literal

from traitlets import List

from .. import words
from ..units import UNLIMITED, parse_bytes, parse_cores
from .asking import Asking
from .command import Text, option, whole
from .stop import Usage
from .tables import Column, Row


def _whole(text: str) -> int:
    return whole(text, "What is counted")


LIMITS: dict[str, tuple[str, Callable[[str], int]]] = {
    "gpus": ("gpu_millis", parse_cores),
    "cpu": ("cpu_millis", parse_cores),
    "memory": ("memory_bytes", parse_bytes),
    "storage": ("storage_bytes", parse_bytes),
    "environments": ("environments", _whole),
    "gpu_hours": ("gpu_hours", _whole),
}
"""What is typed for a limit: its column, and how its value is read."""
MOST = UNLIMITED - 1
Limit = int | Literal["unlimited"] | None
"""None inherits the default."""


def cell(name: str) -> Callable[[Row], str]:
    """How a limit reads that is set."""
    column = LIMITS[name][0]

    def read(row: Row) -> str:
        value = row[column]
        return str(value) if value == "unlimited" or name == "gpu_hours" else words.bare(name, value)

    return read


def _cell(name: str) -> Callable[[Row], str]:
    column, set_one = LIMITS[name][0], cell(name)

    def read(row: Row) -> str:
        if row[column] is None:
            return "default" if not row["scope"].endswith("-default") else "0"
        return set_one(row)

    return read


COLUMNS = [
    Column("SCOPE", "scope"),
    Column("WORKSPACE", "workspace"),
    Column("USER", "user"),
    *(Column(name.replace("_", " ").upper(), _cell(name), right=True) for name in LIMITS),
    Column("MODELS", lambda row: ", ".join(f"{slots} × {model}" for model, slots in row["models"].items())),
]


def parse_limits(typed: list[str]) -> dict[str, Limit]:
    """Read `gpus=8 memory=64G cpu=unlimited environments=default`. Raises: Usage, Invalid."""
    values: dict[str, Limit] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if name not in LIMITS or not equals:
            raise Usage(f"`{text}` is not a limit: write one of {', '.join(f'{one}=…' for one in LIMITS)}.")
        column, read = LIMITS[name]
        values[column] = _amount(value, read)
    return values


def parse_models(typed: list[str]) -> dict[str, Limit]:
    """Read `A100-80GB=4`; `default` takes the limit of a model away. Raises: Usage."""
    models: dict[str, Limit] = {}
    for text in typed:
        model, equals, value = text.rpartition("=")
        if not equals or not model:
            raise Usage(f"`{text}` is not a limit of a model: write --model MODEL=SLOTS, such as A100-80GB=4.")
        models[model] = _amount(value, _whole)
    return models


def _amount(text: str, read: Callable[[str], int]) -> Limit:
    if text == "unlimited":
        return "unlimited"
    if text == "default":
        return None
    value = read(text)
    if value > MOST:
        raise Usage(f"`{text}` is too much: write `unlimited`.")
    return value


class _Scoped(Asking):
    workspace = option(
        Text(help="The quota of a workspace; with --user that of the user inside it."), "workspace", "NAME"
    )
    user = option(Text(help="The quota of a user; with --workspace only inside it."), "user", "NAME")


class QuotasList(_Scoped):
    name = "list"
    description = (
        "List the quotas. Both levels always count: a start needs room in the quota of its user, of its workspace, and "
        "of the user inside the workspace. `default` inherits the default quota of the level; inside a workspace it "
        "does not limit. Without any quota a user or workspace may hold nothing."
    )

    def run(self) -> None:
        rows = self.every("quotas", query={"workspace": self.workspace, "user": self.user})
        rows.sort(key=lambda row: (not row["scope"].endswith("-default"), row["workspace"] or "", row["user"] or ""))
        self.show_rows("quotas", rows, COLUMNS, empty="There are no quotas: nobody may hold anything.")


class QuotasSet(_Scoped):
    name = "set"
    words = ("[LIMIT=VALUE…]",)
    description = (
        "Set limits of one quota; those not named stay. LIMIT is gpus, cpu (cores), memory, storage, environments (all "
        "held at once) or gpu_hours (a month). VALUE is a number, a size such as 64G, `unlimited`, or `default`. A "
        "limit below what is held stops nothing: new starts are refused."
    )
    examples = (
        "remotegpu quotas set --default user gpus=2 cpu=8 memory=64G environments=3 gpu_hours=200 storage=100G\n"
        "remotegpu quotas set --workspace vision gpus=8 cpu=unlimited --model A100-80GB=4\n"
        "remotegpu quotas set --workspace vision --user bob gpus=1\n"
        "remotegpu quotas set --user alice gpus=default --model A100-80GB=default"
    )
    default = option(
        Text(help="The default quota of a level: `user` or `workspace`."),
        "default",
        "LEVEL",
        values=("user", "workspace"),
    )
    model = option(
        List(Text(), help="Slots of one GPU model, such as A100-80GB=4; of a share: A100-80GB/4=2."),
        "model", "MODEL=SLOTS",
    )  # fmt: skip

    def run(self) -> None:
        values, models = parse_limits(self.extra_args), parse_models(list(self.model))
        if not values and not models:
            raise Usage(f"Name a limit to set. Try `{self.path} --help`.")
        path, names = self.which()
        row = self.ask("PATCH", path, body={**values, "models": models}, **names).value
        if self.json:
            self.show_one("quota", row, "")
        else:
            self.show_rows("quotas", [row], COLUMNS, empty="")

    def which(self) -> tuple[str, dict[str, Any]]:
        """The route of the one quota that was named, and what fills it."""
        if self.default is not None:
            if self.workspace is not None or self.user is not None:
                raise Usage("--default stands alone: it is nobody's own quota.")
            if self.default not in ("user", "workspace"):
                raise Usage(f"--default is user or workspace, not `{self.default}`.")
            return "default-quotas/{level}", {"level": self.default}
        if self.workspace is None and self.user is None:
            raise Usage("Whose quota? Write --workspace, --user, both, or --default.")
        if self.workspace is None:
            return "users/{user}/quota", {"user": self.user}
        if self.user is None:
            return "workspaces/{workspace}/quota", {"workspace": self.workspace}
        return "workspaces/{workspace}/members/{user}/quota", {"workspace": self.workspace, "user": self.user}


class Quotas(QuotasList):
    name = "quotas"
    description = "What may be held at once, or used in a month. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (QuotasList, "list them"),
        "set": (QuotasSet, "set limits of a user, a workspace, a member, or the defaults"),
    }
