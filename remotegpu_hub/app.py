"""The `remotegpu` command, for who runs the hub or works on it. What it refuses is one sentence on stderr.

It ends with 0 when all is well, 1 when something was refused or a problem was found, 2 when the command line is wrong.
"""

import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from . import words
from .cli.asking import RULE
from .cli.audit import Audit
from .cli.catalog import Flavors, Images
from .cli.command import Command
from .cli.completion import Completion
from .cli.doctor import Doctor
from .cli.environments import Environments
from .cli.events import Events
from .cli.inventory import Gpus, Hosts
from .cli.invitations import Invitations
from .cli.login import Login, Logout, Whoami
from .cli.members import Members
from .cli.money import Budgets, Prices
from .cli.offers import Offers
from .cli.overview import Overview
from .cli.people import Limits, Users
from .cli.policy import Policy
from .cli.ports import Ports
from .cli.quotas import Quotas
from .cli.reconcile import Reconcile
from .cli.requests import Requests
from .cli.setup import Init, UpgradeDb
from .cli.ssh_keys import SshKeys
from .cli.stop import Stop, Usage
from .cli.volumes import Volumes
from .cli.webhooks import Webhooks
from .cli.workspaces import Workspaces
from .errors import RemoteGPUError


class RemoteGPUApp(Command):
    """The command as a whole."""

    name = "remotegpu"
    description = (
        "Run a JupyterHub as a GPU platform: workspaces, quotas, prices, hosts. Works on the hub's machine, on the "
        "database that the hub's configuration names; and from anywhere, by the hub's API, after `remotegpu login`.\n"
        f"{RULE}"
    )
    examples = (
        "remotegpu doctor\n"
        "remotegpu workspaces create vision --owner alice\n"
        "remotegpu quotas set --workspace vision gpus=8 memory=256G\n"
        "remotegpu environments --running --json"
    )
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "login": (Login, "log in to a hub, to work from anywhere"),
        "logout": (Logout, "forget the login"),
        "whoami": (Whoami, "which hub this works on, and as whom"),
        "init": (Init, "make our tables in the hub's database"),
        "upgrade-db": (UpgradeDb, "bring our tables to this version"),
        "doctor": (Doctor, "check everything, and say what to do"),
        "overview": (Overview, "the hub at a glance, and what needs attention"),
        "workspaces": (Workspaces, "teams: list, create, show, update, archive, reopen, usage, leave"),
        "users": (Users, "who there is"),
        "members": (Members, "who belongs to a workspace: list, add, set, suspend, remove"),
        "invitations": (Invitations, "asking users in: list, send, take-back, accept, decline"),
        "quotas": (Quotas, "what may be held: list, set"),
        "limits": (Limits, "what you may hold, and hold"),
        "policy": (Policy, "try limits before they are set: dry-run"),
        "requests": (Requests, "asking for more: list, ask, approve, refuse, withdraw"),
        "budgets": (Budgets, "what a month may cost: list, set, remove"),
        "prices": (Prices, "what a unit costs: list, set"),
        "hosts": (Hosts, "machines: list, maintenance, drain, online"),
        "gpus": (Gpus, "GPUs and who holds them: list, maintenance, available"),
        "images": (Images, "what can be run: list, set"),
        "flavors": (Flavors, "presets of resources: list, set, retire"),
        "volumes": (Volumes, "storage that outlives runs: list, delete"),
        "ssh-keys": (SshKeys, "public keys of users: list, add, remove"),
        "environments": (Environments, "what users keep and run: list, create, start, stop, logs, …"),
        "offers": (Offers, "what you may start now, and what it costs"),
        "ports": (Ports, "outside addresses that lead into environments"),
        "events": (Events, "what happened, and what happens from now on"),
        "audit": (Audit, "who changed what"),
        "webhooks": (Webhooks, "addresses that are told of events: list, add, set, test, log, again, remove"),
        "reconcile": (Reconcile, "compare with what really runs, and repair"),
        "completion": (Completion, "let a shell complete commands and options"),
    }

    def run(self) -> None:
        self.print_help()
        raise Usage("Write a command.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        app = RemoteGPUApp()
        app.initialize(list(sys.argv[1:] if argv is None else argv))
        app.start()
        sys.stdout.flush()
    except Stop as stop:
        return _stopped(str(stop), stop.exit_code)
    except RemoteGPUError as error:
        return _stopped(words.explain_text(error, "en") + _cause(error), 1)
    except SQLAlchemyError as error:
        return _stopped(f"The database does not answer as it should.{_driver(error)}", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _stopped("Stopped.", 130)
    except SystemExit as end:
        if isinstance(end.code, str):
            return _stopped(end.code, 1)
        return end.code or 0
    return 0


def _stopped(sentence: str, code: int) -> int:
    sys.stderr.write(f"remotegpu: {sentence}\n")
    return code


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return _driver(cause) if isinstance(cause, SQLAlchemyError) else ""


def _driver(error: SQLAlchemyError) -> str:
    """What the database's driver says, without the statement and its values."""
    said = str(error.orig).strip() if isinstance(error, DBAPIError) else type(error).__name__
    return f" ({said.splitlines()[0]})" if said else ""


if __name__ == "__main__":
    sys.exit(main())
