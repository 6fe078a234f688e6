"""Each route of the API has a command, found by reading the commands themselves, or stands here with a reason."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import product
from types import ModuleType

import pytest

from remotegpu_hub.app import RemoteGPUApp
from remotegpu_hub.cli.command import Command
from remotegpu_hub.services.workspaces.routes import ROUTES

ONE_OF = "one row of what the command of the list prints"
OWN_KEYS = "`ssh-keys` works on users/{user}/ssh-keys, of oneself too"
WITHOUT = {
    "GET ssh-keys": OWN_KEYS,
    "POST ssh-keys": OWN_KEYS,
    "DELETE ssh-keys/{id}": OWN_KEYS,
    "GET environments/{id}/access": "`environments access` prints what the environment itself carries",
    "GET hosts/{host}": ONE_OF,
    "GET users/{user}": ONE_OF,
    "GET quota-requests/{id}": ONE_OF,
    "GET workspaces/{workspace}": "`workspaces show` reads more: its overview",
    "GET workspaces/{workspace}/quota": ONE_OF,
    "GET workspaces/{workspace}/members/{user}/quota": ONE_OF,
    "GET users/{user}/quota": ONE_OF,
    "GET default-quotas/{level}": ONE_OF,
}
"""Routes without a command of their own, and why."""
ASKS = {"read": "GET", "every": "GET", "each": "GET", "lines": "GET", "events": "GET", "create": "POST"}
"""Methods that ask a route by its path, and with which verb; `ask` is told the verb before the path."""


def commands(command: type[Command] = RemoteGPUApp) -> Iterator[type[Command]]:
    """The command and all below it."""
    yield command
    below = command.subcommands if isinstance(command.subcommands, dict) else {}
    for one, _about in below.values():
        yield from commands(one)


@cache
def tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _called(call: ast.Call) -> str:
    """The method that is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


class Reader:
    """What one command asks, by its own source and that of what it derives from."""

    def __init__(self, command: type[Command]) -> None:
        self.command = command

    def asks(self) -> Iterator[str]:
        own = inspect.getmodule(self.command)
        assert own is not None
        for helper in (one for one in tree(own).body if isinstance(one, ast.FunctionDef)):
            yield from self._of(helper, helper, own)
        for one in self.command.__mro__:
            if not one.__module__.startswith("remotegpu_hub.cli.") or one.__module__.endswith((".asking", ".command")):
                continue
            module = inspect.getmodule(one)
            assert module is not None
            (body,) = (two for two in tree(module).body if isinstance(two, ast.ClassDef) and two.name == one.__name__)
            for function in (two for two in body.body if isinstance(two, ast.FunctionDef)):
                if next(two for two in self.command.__mro__ if function.name in vars(two)) is one:
                    yield from self._of(function, body, module)

    def _source(self) -> ast.ClassDef:
        module = inspect.getmodule(self.command)
        assert module is not None
        name = self.command.__name__
        return next(one for one in tree(module).body if isinstance(one, ast.ClassDef) and one.name == name)

    def _of(self, function: ast.FunctionDef, body: ast.stmt, module: ModuleType) -> Iterator[str]:
        for call in (one for one in ast.walk(function) if isinstance(one, ast.Call)):
            name = _called(call)
            given = call.args if name == "ask" else [ast.Constant(ASKS[name]), *call.args] if name in ASKS else []
            if len(given) >= 2:
                for verb, path in product(*(self._texts(one, function, body, module) for one in given[:2])):
                    yield f"{verb} {path}"

    def _texts(self, value: ast.expr, function: ast.FunctionDef, body: ast.stmt, module: ModuleType) -> list[str]:
        """What an expression can be: of a parameter whatever the command hands over, of a variable any text there."""
        if isinstance(value, ast.Constant):
            return [str(value.value)]
        if isinstance(value, ast.Attribute):
            return [str(getattr(self.command, value.attr, ""))]
        if isinstance(value, ast.FormattedValue):
            return self._texts(value.value, function, body, module)
        if isinstance(value, ast.JoinedStr):
            parts = (self._texts(one, function, body, module) for one in value.values)
            return ["".join(one) for one in product(*parts)]
        if isinstance(value, ast.Name) and isinstance(getattr(module, value.id, None), str):
            return [getattr(module, value.id)]
        if isinstance(value, ast.Name) and value.id in (names := [one.arg for one in function.args.args]):
            calls = (one for one in ast.walk(self._source()) if isinstance(one, ast.Call))
            said = (one.args[names.index(value.id) - 1] for one in calls if _called(one) == function.name)
            return [str(one.value) for one in said if isinstance(one, ast.Constant)]
        return [one.value for one in ast.walk(body) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


@cache
def asked() -> frozenset[str]:
    return frozenset(one for command in commands() for one in Reader(command).asks())


@pytest.mark.parametrize("route", [f"{one.method} {one.path}" for one in ROUTES])
def test_every_route_has_a_command_or_a_reason(route: str) -> None:
    assert (route in asked()) != (route in WITHOUT), "give it a command, or name it in WITHOUT with the reason"


def test_what_stands_without_a_command_is_a_route() -> None:
    assert WITHOUT.keys() <= {f"{one.method} {one.path}" for one in ROUTES}
