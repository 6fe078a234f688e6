"""`remotegpu invitations`: asking hub users into a workspace, and answering."""

from typing import ClassVar

from ..domain.invitations import DEFAULT_DAYS
from ..orm import Role
from .asking import Asking
from .command import Text, chosen, option, whole
from .tables import Column, short

COLUMNS = [
    Column("WORKSPACE", "workspace"),
    Column("USER", "user"),
    Column("ROLE", "role"),
    Column("INVITED BY", "invited_by"),
    Column("SINCE", lambda row: short(row["invited_at"])),
    Column("UNTIL", lambda row: "ran out" if row["ran_out"] else short(row["until"])),
]
PATH = "workspaces/{workspace}/invitations"


class InvitationsList(Asking):
    name = "list"
    words: ClassVar[tuple[str, ...]] = ("[WORKSPACE]",)
    description = "List who is invited into a workspace; without one, the invitations that you can accept."

    def run(self) -> None:
        name = self.word(0)
        if name is None:
            self.needs_hub()
            rows = self.every("invitations")
        else:
            rows = self.every(PATH, workspace=name)
        self.show_rows("invitations", rows, COLUMNS, empty="Nobody is invited." if name else "You are not invited.")


class InvitationsSend(Asking):
    name = "send"
    words = ("WORKSPACE", "USER")
    description = "Invite a user of the hub into a workspace: they become a member when they accept."
    examples = "remotegpu invitations send vision carol --role viewer --days 7"
    role = option(Text(help="`owner`, `admin`, `member` or `viewer`. Default: member."), "role", "ROLE", values=Role)
    days = option(Text(help=f"How long it can be accepted. Default: {DEFAULT_DAYS}."), "days", "DAYS")

    def run(self) -> None:
        role = chosen(Role, self.role, "--role") or Role.MEMBER
        days = whole(self.days, "--days") if self.days is not None else DEFAULT_DAYS
        row = self.create(PATH, {"user": self.need(1), "role": role, "days": days}, workspace=self.need(0))
        until = f" until {short(row['until'])}" if row["until"] else ""
        self.show_one(
            "invitation", row, f"{row['user']} can become {row['role']} of {row['workspace']}{until}."
        )  # fmt: skip


class InvitationsTakeBack(Asking):
    name = "take-back"
    words = ("WORKSPACE", "USER")
    description = "Take an invitation back."

    def run(self) -> None:
        space, user = self.need(0), self.need(1)
        self.ask("DELETE", f"{PATH}/{{user}}", workspace=space, user=user)
        row = {"workspace": space, "user": user}
        self.show_one("invitation", row, f"{user} is not invited into {space} any more.")


class _Answer(Asking):
    """Answers an invitation of one's own."""

    words = ("WORKSPACE",)
    told = ""

    def run(self) -> None:
        self.needs_hub()
        space = self.need(0)
        self.ask("POST", f"invitations/{{workspace}}/{self.name}", workspace=space)
        self.show_one("invitation", {"workspace": space, "answer": self.name}, self.told.format(space))


class InvitationsAccept(_Answer):
    name = "accept"
    description = "Become a member of a workspace that invited you."
    told = "You are a member of {} now."


class InvitationsDecline(_Answer):
    name = "decline"
    description = "Decline the invitation of a workspace."
    told = "You declined the invitation of {}."


class Invitations(InvitationsList):
    name = "invitations"
    words = ()
    description = "Asking users into a workspace. Without a command: list the invitations that you can accept."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (InvitationsList, "list yours, or those of a workspace"),
        "send": (InvitationsSend, "invite a user"),
        "take-back": (InvitationsTakeBack, "take one back"),
        "accept": (InvitationsAccept, "become a member"),
        "decline": (InvitationsDecline, "say no"),
    }
