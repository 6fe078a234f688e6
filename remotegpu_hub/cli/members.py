"""`remotegpu members`: who belongs to a workspace, in which role."""

from typing import Any

from ..clients.api import Answer
from ..errors import RemoteGPUError
from ..orm import MemberStatus, Role
from .asking import Asking, missing
from .command import Text, chosen, option
from .stop import Refused, Usage
from .tables import Column, Row
from .workspaces import members_of, names_of_workspaces

COLUMNS = [
    Column("WORKSPACE", "workspace"),
    Column("USER", "user"),
    Column("ROLE", "role"),
    Column("STATUS", "status"),
    Column("BY GROUP", lambda row: "yes" if row["from_group"] else "no"),
]
ROLES = "`owner`, `admin`, `member` or `viewer`"
PATH = "workspaces/{workspace}/members/{user}"


class MembersList(Asking):
    name = "list"
    words = ("[WORKSPACE]",)
    description = "List the members of one workspace, or of all that you may see."

    def run(self) -> None:
        name = self.word(0)
        spaces = [name] if name is not None else names_of_workspaces(self)
        rows = [row for space in spaces for row in members_of(self, space)]
        self.show_rows("members", rows, COLUMNS, empty="There are no members.")


class _Change(Asking):
    """Changes one membership."""

    words = ("WORKSPACE", "USER")

    def run(self) -> None:
        space, user = self.need(0), self.need(1)
        try:
            known = self.ask("GET", PATH, workspace=space, user=user)
        except RemoteGPUError as error:
            if not missing(error, "The member"):
                raise
            known = self.unknown(error)
        row, sentence = self.change(known)
        self.show_one("member", {"workspace": space, **row}, sentence)

    def unknown(self, error: RemoteGPUError) -> Answer:
        """What to go on with where there is no such member."""
        raise error

    def change(self, known: Answer) -> tuple[Row, str]:
        raise NotImplementedError

    def put(self, known: Answer, *, role: str, status: str) -> Any:
        body = {"role": role, "status": status}
        return self.ask(
            "PUT", PATH, body=body, match=known.tag, workspace=self.need(0), user=self.need(1)
        ).value  # fmt: skip


class MembersAdd(_Change):
    name = "add"
    description = "Add a hub user to a workspace."
    examples = "remotegpu members add vision bob\nremotegpu members add vision carol --role viewer"
    role = option(Text(help=f"{ROLES}. Default: member."), "role", "ROLE", values=Role)

    def unknown(self, error: RemoteGPUError) -> Answer:
        return Answer(None)

    def change(self, known: Answer) -> tuple[Row, str]:
        role = chosen(Role, self.role, "--role") or Role.MEMBER
        if known.value is not None:
            raise Refused(
                f"{self.need(1)} is {known.value['role']} of {self.need(0)} already, {known.value['status']}: "
                "change that with `remotegpu members set`."
            )
        row = self.put(known, role=role.value, status="active")
        return row, f"{row['user']} is now {row['role']} of {self.need(0)}."


class MembersSet(_Change):
    name = "set"
    description = "Change a member's role or status."
    examples = "remotegpu members set vision bob --role admin\nremotegpu members set vision carol --status active"
    role = option(Text(help=f"{ROLES}."), "role", "ROLE", values=Role)
    status = option(Text(help="`active` or `suspended`."), "status", "STATUS", values=("active", "suspended"))

    def run(self) -> None:
        if self.role is None and self.status is None:
            raise Usage(f"Name what to change: --role, --status or both. Try `{self.path} --help`.")
        if self.status == MemberStatus.INVITED:
            raise Usage("Nobody is made invited like this: `remotegpu invitations send` sends an invitation.")
        super().run()

    def change(self, known: Answer) -> tuple[Row, str]:
        role = chosen(Role, self.role, "--role")
        status = chosen(MemberStatus, self.status, "--status", without=[MemberStatus.INVITED])
        row = self.put(known, role=role or known.value["role"], status=status or known.value["status"])
        return row, f"{row['user']} is now {row['role']} of {self.need(0)}, {row['status']}."


class MembersSuspend(_Change):
    name = "suspend"
    description = "Let a member start nothing more in the workspace, and keep the membership."

    def change(self, known: Answer) -> tuple[Row, str]:
        row = self.put(known, role=known.value["role"], status="suspended")
        return row, f"{row['user']} is suspended in {self.need(0)}."


class MembersRemove(_Change):
    name = "remove"
    description = "Take a member out of a workspace. The last owner stays."

    def change(self, known: Answer) -> tuple[Row, str]:
        self.ask("DELETE", PATH, match=known.tag, workspace=self.need(0), user=self.need(1))
        return known.value, f"{known.value['user']} is no longer a member of {self.need(0)}."


class Members(MembersList):
    name = "members"
    description = (
        "Who belongs to a workspace, in which role. Without a command: list them.\n"
        "A personal workspace is written in quotes, such as '~alice': the shell takes ~ for a home folder."
    )
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (MembersList, "list those of a workspace, or all"),
        "add": (MembersAdd, "add a hub user"),
        "set": (MembersSet, "change role or status"),
        "suspend": (MembersSuspend, "let one start nothing more there"),
        "remove": (MembersRemove, "take one out"),
    }
