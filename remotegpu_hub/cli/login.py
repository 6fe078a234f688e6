"""`remotegpu login`, `logout` and `whoami`: from which hub's API the commands work, and as whom."""

import getpass
import sys
from typing import Any

from traitlets import Bool

from ..clients.api import REACH, Address, ApiClient, hub_token, hub_url
from . import logins
from .asking import RULE, Asking
from .command import Command, Text, option
from .stop import Refused, Usage
from .tables import dump, pairs, printable

OURS = "custom:remotegpu:"
READ, WRITE, ADMIN = f"{OURS}read", f"{OURS}write", f"{OURS}admin"


class Login(Command):
    name = "login"
    hides = frozenset({"config_file", "db_file"})
    words = ("[URL]",)
    description = (
        "Log in to a hub, to work on it from anywhere by its API. URL is the hub's address as a browser shows it. The "
        "token is asked for, and never taken from the command line, where others could see it. It is kept in a file "
        "that only you can read. Without URL: again to the hub that you are logged in to."
    )
    examples = (
        "remotegpu login https://hub.example.org/\nremotegpu login https://hub.example.org/ --token-file - < token"
    )
    token_file = option(
        Text(help="A file with the token in it and nothing else; - is the standard input."), "token-file", "FILE"
    )
    allow_http = option(
        Bool(False, help="Also without TLS: the token then goes over the network in clear."), "allow-http"
    )

    def run(self) -> None:
        allow = self.allow_http or logins.may_use_http()
        url = hub_url(self._url(), allow_http=allow)
        address = Address(url, hub_token(self._token(url)))
        with ApiClient(address) as api:
            who = api.ask("GET", "whoami", {}).value
        logins.write(logins.Login(address, allow_http=allow))
        if self.json:
            self.say(dump({"login": {"hub": url, "file": str(logins.path()), **who}}))
            return
        self.say(printable(f"Logged in to {url} as {who['name']}. The token is kept in {logins.path()}."))
        for note in _lacks(who):
            self.say(note)

    def _url(self) -> str:
        named = self.word(0)
        if named:
            return named
        kept = logins.read()
        if kept is None:
            raise Usage(f"URL is missing. Write {self.usage}.")
        return kept.address.url

    def _token(self, url: str) -> str:
        if self.token_file is not None and self.token_file != "-":
            return logins.token_in(self.token_file)
        if self.token_file == "-":
            return sys.stdin.read(2000)
        sys.stderr.write(
            f"Make a token at {url}hub/token and paste it here; it is not shown. Leave its permissions empty to give "
            f"it all of yours, or write\n  {REACH} {READ} {WRITE}\nand {ADMIN} to work as an admin of the hub.\n"
        )
        try:
            return getpass.getpass("Token: ")
        except EOFError:
            raise Usage("No token came. Paste it, or name a file with --token-file.") from None


def _lacks(who: dict[str, Any]) -> list[str]:
    """What the token does not carry, and what that means."""
    if who["hub_admin"] and ADMIN not in who["scopes"]:
        return [f"The token lacks {ADMIN}: with it you see everything, and change only what is your own."]
    if not {WRITE, ADMIN} & set(who["scopes"]):
        return [f"The token lacks {WRITE}: with it you change nothing."]
    return []


class Logout(Command):
    name = "logout"
    hides = frozenset({"config_file", "db_file"})
    description = "Forget the login that is kept here. The token itself stays valid until the hub's page ends it."

    def run(self) -> None:
        try:
            kept = logins.read()
        except Refused:
            kept = None
        gone = logins.forget()
        if self.json:
            self.say(dump({"logout": {"file": str(logins.path()), "forgotten": gone}}))
        elif gone:
            page = f" at {kept.address.url}hub/token" if kept else ""
            self.say(f"Forgotten. Until you revoke it{page}, the token stays valid for whoever has it.")
        else:
            self.say("You are not logged in.")


class Whoami(Asking):
    name = "whoami"
    description = f"Show which hub the commands work on from here, by which way, and as whom.\n{RULE}"
    examples = "remotegpu whoami\nremotegpu whoami --hub https://hub.example.org/"

    def run(self) -> None:
        who = self.read("whoami")
        del who["kind"]
        if self.address is not None:
            facts = {"way": "API", "hub": self.address.url, "named by": "--hub" if self.hub else logins.named_by()}
        else:
            facts = {"way": "database", "hub": self.place.shown, "named by": self.place.source}
        row = {**facts, **who}
        if self.json:
            self.say(dump({"whoami": {name.replace(" ", "_"): value for name, value in row.items()}}))
            return
        shown = {**row, "hub_admin": "yes" if who["hub_admin"] else "no", "scopes": ", ".join(who["scopes"])}
        self.say(pairs([(name.replace("_", " "), value) for name, value in shown.items()]))
        for note in _lacks(who):
            self.say(note)
