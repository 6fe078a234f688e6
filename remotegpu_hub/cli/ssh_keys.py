"""`remotegpu ssh-keys`: the public keys with which users log in where an environment has a port for SSH."""

import sys
from pathlib import Path

from .asking import Asking
from .command import Command, Text, option, whole
from .stop import Usage
from .tables import Column, short

COLUMNS = [
    Column("KEY", "id", right=True),
    Column("NAME", "name"),
    Column("FINGERPRINT", "fingerprint"),
    Column("SINCE", lambda row: short(row["created_at"])),
]
LARGEST_BYTES = 20_000
PATH = "users/{user}/ssh-keys"


class KeysList(Asking):
    name = "list"
    words = ("USER",)
    description = "List a user's public keys."

    def run(self) -> None:
        rows = self.every(PATH, user=self.need(0))
        self.show_rows("ssh_keys", rows, COLUMNS, empty=f"{self.need(0)} has no keys.")


class KeysAdd(Asking):
    name = "add"
    words = ("USER", "[FILE]")
    description = (
        "Keep a public key of a user: the one line of a file such as id_ed25519.pub, or of the standard input. It is "
        "let in within a minute, also where an environment runs already."
    )
    examples = "remotegpu ssh-keys add alice ~/.ssh/id_ed25519.pub\nssh-add -L | head -1 | remotegpu ssh-keys add alice"
    called = option(Text(help="What the key is called. Default: its comment."), "name", "NAME")

    def run(self) -> None:
        path = self.word(1)
        try:
            text = sys.stdin.read(LARGEST_BYTES) if path in (None, "-") else _read(Path(str(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise Usage(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not a text'}.") from error
        if "PRIVATE KEY" in text:
            raise Usage(
                "That is a private key: it stays with its user. Its public part stands in a file that ends with .pub."
            )
        row = self.create(PATH, {"public_key": text, "name": self.called or ""}, user=self.need(0))
        self.show_one("ssh_key", row, f"{self.need(0)} can log in with {row['name']}, {row['fingerprint']}.")


def _read(path: Path) -> str:
    with path.open() as file:
        return file.read(LARGEST_BYTES)


class KeysRemove(Asking):
    name = "remove"
    words = ("USER", "KEY")
    description = "Let nobody log in with a key any more. Who is logged in stays so."
    examples = "remotegpu ssh-keys remove alice 3"

    def run(self) -> None:
        number = whole(self.need(1), "KEY")
        known = self.every(PATH, user=self.need(0))
        row = next((one for one in known if one["id"] == number), {"id": number})
        self.ask("DELETE", f"{PATH}/{{id}}", user=self.need(0), id=str(number))
        self.show_one("ssh_key", row, f"Key {number} of {self.need(0)} is removed.")


class SshKeys(Command):
    name = "ssh-keys"
    description = "The public keys with which users log in where an environment has a port for SSH."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (KeysList, "list a user's"),
        "add": (KeysAdd, "keep one"),
        "remove": (KeysRemove, "let nobody in with one any more"),
    }

    def run(self) -> None:
        self.print_help()
        raise Usage("Write a command.")
