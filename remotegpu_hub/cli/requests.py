"""`remotegpu requests`: asking for higher limits, and deciding."""

from typing import Any, ClassVar

from traitlets import Bool, List

from ..orm import RequestState
from .asking import Asking
from .command import Text, chosen, option, whole
from .quotas import LIMITS, cell, parse_limits, parse_models
from .stop import Usage
from .tables import Column, Row, short

PATH = "quota-requests/{id}"


def _wanted(limits: Row | None) -> str:
    """`gpus 8, memory 64 GiB, 4 × A100-80GB`: what is named of limits."""
    if limits is None:
        return ""
    named = [f"{name} {cell(name)(limits)}" for name, (column, _read) in LIMITS.items() if limits[column] is not None]
    return ", ".join([*named, *(f"{slots} × {model}" for model, slots in limits["models"].items())])


COLUMNS = [
    Column("ID", "id", right=True),
    Column("USER", "user"),
    Column("FOR", lambda row: row["workspace"] or "themselves"),
    Column("SCOPE", "scope"),
    Column("WANTS", lambda row: _wanted(row["wanted"])),
    Column("STATE", "state"),
    Column("SINCE", lambda row: short(row["created_at"])),
    Column("REASON", "reason"),
    Column("ANSWER", "answer"),
]


class RequestsList(Asking):
    name = "list"
    description = "List the requests that you may see, newest first."
    workspace = option(Text(help="Only those for this workspace, and inside it."), "workspace", "NAME")
    state = option(
        Text(help="`open`, `approved`, `refused` or `withdrawn`. Default: all."), "state", "STATE", values=RequestState
    )

    def run(self) -> None:
        query = {"state": chosen(RequestState, self.state, "--state")}
        self.show_rows("requests", self._rows(query), COLUMNS, empty="Nobody asked for anything.")

    def _rows(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        if self.workspace is not None:
            return self.every("workspaces/{workspace}/quota-requests", query=query, workspace=self.workspace)
        found = self.allowed(lambda: self.every("all-quota-requests", query=query))
        return self.every("quota-requests", query=query) if found is None else found


class _Limits(Asking):
    """Takes limits as `remotegpu quotas set` does."""

    model = option(
        List(Text(), help="Slots of one GPU model, such as A100-80GB=4; of a share: A100-80GB/4=2."),
        "model", "MODEL=SLOTS",
    )  # fmt: skip

    def limits(self, typed: list[str]) -> dict[str, Any] | None:
        values, models = parse_limits(typed), parse_models(list(self.model))
        if None in (*values.values(), *models.values()):
            raise Usage("`default` cannot be asked for: write how much in all.")
        return {**values, "models": models} if values or models else None


class RequestsAsk(_Limits):
    name = "ask"
    words = ("[LIMIT=VALUE…]",)
    description = (
        "Ask for higher limits, as much as is needed in all. LIMIT and VALUE are those of `remotegpu quotas set`. "
        "Without --workspace for yourself; with it for the workspace, or with --inside for yourself inside it. An open "
        "request of the same kind is replaced."
    )
    examples = "remotegpu requests ask gpus=4 --workspace vision --inside --reason 'Two papers until May'"
    workspace = option(Text(help="The workspace."), "workspace", "NAME")
    inside = option(Bool(False, help="For yourself inside the workspace."), "inside")
    reason = option(Text(help="Why. Required."), "reason", "TEXT")

    def run(self) -> None:
        limits = self.limits(self.extra_args)
        if limits is None or not self.reason:
            raise Usage(f"Name a limit and a --reason. Try `{self.path} --help`.")
        if self.inside and self.workspace is None:
            raise Usage("--inside goes together with --workspace.")
        self.needs_hub()
        scope = "user" if self.workspace is None else "member" if self.inside else "workspace"
        body = {"scope": scope, "workspace": self.workspace, "limits": limits, "reason": self.reason}
        row = self.create("quota-requests", body)
        self.show_one("request", row, f"Asked for {_wanted(row['wanted'])}, as request {row['id']}.")


class _One(Asking):
    words: ClassVar[tuple[str, ...]] = ("ID",)

    @property
    def number(self) -> str:
        return str(whole(self.need(0), "ID"))


class RequestsApprove(_One, _Limits):
    name = "approve"
    words = ("ID", "[LIMIT=VALUE…]")
    description = "Set the limits that were asked for, or the numbers that you write instead. They count at once."
    examples = (
        "remotegpu requests approve 7\nremotegpu requests approve 7 gpus=2 --answer 'Two until the new host is there'"
    )
    answer = option(Text(help="What who asked reads."), "answer", "TEXT")

    def run(self) -> None:
        body = {"limits": self.limits(self.extra_args[1:]), "answer": self.answer or ""}
        row = self.ask("POST", f"{PATH}/approve", body=body, id=self.number).value
        self.show_one("request", row, f"{row['user']} may have {_wanted(row['granted']) or 'what they had'}.")


class RequestsRefuse(_One):
    name = "refuse"
    description = "Refuse a request, with an answer that who asked reads."
    examples = "remotegpu requests refuse 7 --answer 'Ask again in May, when the new host is there'"
    answer = option(Text(help="Why, and what to do instead. Required."), "answer", "TEXT")

    def run(self) -> None:
        if not self.answer:
            raise Usage(f"--answer is missing: who asked wants to know why. Try `{self.path} --help`.")
        row = self.ask("POST", f"{PATH}/refuse", body={"answer": self.answer}, id=self.number).value
        self.show_one("request", row, f"Request {row['id']} of {row['user']} is refused.")


class RequestsWithdraw(_One):
    name = "withdraw"
    description = "Take back what you asked for."

    def run(self) -> None:
        self.needs_hub()
        row = self.ask("POST", f"{PATH}/withdraw", id=self.number).value
        self.show_one("request", row, f"Request {row['id']} is withdrawn.")


class Requests(RequestsList):
    name = "requests"
    description = "Requests for higher limits. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (RequestsList, "list them"),
        "ask": (RequestsAsk, "ask for more"),
        "approve": (RequestsApprove, "set what was asked for, or other numbers"),
        "refuse": (RequestsRefuse, "refuse one, with an answer"),
        "withdraw": (RequestsWithdraw, "take yours back"),
    }
