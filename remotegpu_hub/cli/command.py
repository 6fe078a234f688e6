"""What every command shares: options as traits, words, help that reads well, the database, and how results are
printed. Traitlets ignores options that it does not know; here they are refused."""

import os
import pwd
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from textwrap import fill, indent
from typing import Any, ClassVar, NoReturn, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.orm import Session
from traitlets import Bool, List, TraitError, TraitType
from traitlets.config import Application
from traitlets.config.loader import ArgumentError, KVArgParseConfigLoader

from .. import __version__, migrations
from ..db import begin, open_engine
from ..domain.audit import Actor
from . import tables
from .database import URL_VARIABLE, Place, find
from .logins import HUB_VARIABLE
from .stop import Refused, Usage
from .tables import Column, Row

E = TypeVar("E")
HELP_WIDTH = 100
_DOT = "__DOT__"


class Text(TraitType[Any, Any]):
    """A text as it was typed: no `~` expanded, no quotes taken off. None when it was not given."""

    default_value = None
    allow_none = True
    info_text = "a text"

    def validate(self, obj: Any, value: Any) -> Any:
        return value if isinstance(value, str) else self.error(obj, value)

    def from_string(self, s: str) -> str:
        return s


def option(trait: Any, name: str, shown: str = "", *, short: str = "", values: Iterable[str] = ()) -> Any:
    """Make a trait an option `--name SHOWN` of its command; a Bool becomes a flag. `values` are completed."""
    return trait.tag(config=True, option=name, shown=shown, short=short, values=tuple(values))


class _Parser(KVArgParseConfigLoader.parser_class):  # type: ignore[valid-type,misc]
    """Takes words between options too."""

    names: Mapping[str, str]
    """Options by the trait that each one sets."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        for target, name in self.names.items():
            message = message.replace(f"--{target}", f"--{name}")
        unknown = re.match(r"argument (--[^\s:=/]+): expected", message)
        if unknown and unknown[1].removeprefix("--") not in self.names.values():
            message = f"there is no option {unknown[1]} here"
        raise ArgumentError(message)


class _Loader(KVArgParseConfigLoader):
    """Refuses options that it does not know."""

    parser_class = _Parser

    def _create_parser(self) -> None:
        super()._create_parser()
        names = {target: name for name, target in self.aliases.items()}
        self.parser.names = names  # type: ignore[attr-defined]

    def _convert_to_config(self) -> None:
        known = set(self.aliases.values())
        for name in vars(self.parsed_data):
            if name not in ("extra_args", "_flags") and name.replace(_DOT, ".") not in known:
                raise ArgumentError(f"there is no option --{name.replace(_DOT, '.')} here")
        super()._convert_to_config()


class Command(Application):
    """One command. `words` are what must (or, in brackets, may) follow it; the last one may end with `…`."""

    words: ClassVar[tuple[str, ...]] = ()
    values: ClassVar[tuple[str, ...]] = ()
    """What the first word may be, for shells to complete."""
    hides: ClassVar[frozenset[str]] = frozenset()
    """Shared options that it does not have."""
    creates_database: ClassVar[bool] = False
    needs_tables: ClassVar[bool] = True
    version = __version__

    json = option(Bool(False, help="Print JSON for programs instead of a table for people."), "json")
    config_file = option(
        Text(help="The hub's configuration, whose database is used. Default: ./jupyterhub_config.py."),
        "config", "FILE", short="f",
    )  # fmt: skip
    db_file = option(
        Text(
            help=f"A file that holds the database's URL and nothing else; comes before --config and "
            f"${URL_VARIABLE}. Keep it readable by its owner only."
        ),
        "db-file", "FILE",
    )  # fmt: skip

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        owner = type(self).__name__
        aliases: dict[Any, str] = {}
        flags: dict[Any, Any] = {}
        for name, trait in self.options():
            names = (trait.metadata["short"], trait.metadata["option"])
            keys = tuple(one for one in names if one)
            if isinstance(trait, Bool):
                flags[keys] = ({owner: {name: True}}, trait.help)
            else:
                aliases[keys] = f"{owner}.{name}"
        self.aliases, self.flags = aliases, flags

    @classmethod
    def options(cls) -> list[tuple[str, TraitType[Any, Any]]]:
        """The options of this command, its own before the shared ones."""
        traits = cls.class_traits(config=True).items()
        found = [(name, one) for name, one in traits if one.metadata.get("option") and name not in cls.hides]
        shared = [
            name for name in ("json", "hub", "config_file", "db_file") if any(name == known for known, _ in found)
        ]
        return sorted(found, key=lambda one: (one[0] in shared, shared.index(one[0]) if one[0] in shared else 0))

    # -- from the command line to run() --

    def parse_command_line(self, argv: Any = None) -> None:
        if self.subcommands and argv and str(argv[0]).startswith("-") and any(one in self.subcommands for one in argv):
            raise Usage("Options stand behind the command, such as `remotegpu gpus list --json`.")
        try:
            Application.parse_command_line.__wrapped__(self, argv)  # type: ignore[attr-defined]
        except (TraitError, ArgumentError) as error:
            raise Usage(f"{str(error).rstrip('.')}. Try `{self.path} --help`.") from error

    def initialize_subcommand(self, subc: str, argv: Any = None) -> None:
        """Hand over to a subcommand. No singletons: the hub's configuration asks for the running hub by them."""
        self.subapp = self.subcommands[subc][0](parent=self)
        self.subapp.initialize(argv)

    def _create_loader(self, argv: Any, aliases: Any, flags: Any, classes: Any) -> KVArgParseConfigLoader:
        flat = {name: target for names, target in aliases.items() for name in _names(names)}
        return _Loader(argv, flat, flags, classes=classes, log=self.log)

    @property
    def path(self) -> str:
        """How the command is called: `remotegpu workspaces create`."""
        return f"{self.parent.path} {self.name}" if isinstance(self.parent, Command) else str(self.name)

    def start(self) -> None:
        if self.subapp is not None:
            self.subapp.start()
            return
        self._check_words()
        try:
            self.run()
        finally:
            self.close()

    def close(self) -> None:
        """Give back what was opened."""
        if "engine" in self.__dict__:
            self.engine.dispose()

    def _check_words(self) -> None:
        given = self.extra_args
        least = sum(not word.startswith("[") for word in self.words)
        endless = bool(self.words) and "…" in self.words[-1]
        if len(given) > len(self.words) and not endless:
            if self.subcommands and not self.words:
                verbs = ", ".join(self.subcommands)
                raise Usage(f"`{self.path}` has no `{given[0]}`: write one of {verbs}.")
            raise Usage(f"`{given[len(self.words)]}` is one word too many. Write {self.usage}.")
        if len(given) < least:
            raise Usage(f"{self.words[len(given)].strip('…')} is missing. Write {self.usage}.")

    def word(self, index: int) -> str | None:
        """The word at this place, or None where it was left out."""
        return self.extra_args[index] if index < len(self.extra_args) else None

    def need(self, index: int) -> str:
        """A word that `words` demands."""
        return str(self.extra_args[index])

    def run(self) -> None:
        raise NotImplementedError

    # -- the database --

    @cached_property
    def place(self) -> Place:
        """The hub's database. Raises: Usage, Refused."""
        if os.environ.get(HUB_VARIABLE) and not (self.config_file or self.db_file):
            raise Refused(
                f"`{self.path}` works on the hub's database, on the hub's machine: name it with --config or --db-file. "
                f"{HUB_VARIABLE} names an API."
            )
        return find(config_file=self.config_file, db_file=self.db_file)

    @cached_property
    def engine(self) -> Engine:
        place = self.place
        if not self.creates_database and place.sqlite_file is not None and not place.sqlite_file.exists():
            raise Refused(
                f"There is no database {place.sqlite_file}, named by {place.source}. Run this in the folder in which "
                "the hub is started, or make the database with `remotegpu init`."
            )
        try:
            engine = open_engine(place.url, **place.kwargs)
        except TypeError as error:
            raise Refused(f"The db_kwargs of {place.source} do not fit: {str(error).splitlines()[0]}") from error
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise Refused(
                f"There is no driver for {place.shown}, named by {place.source}: `pip install "
                "'remotegpu-hub[postgresql]'` brings that of PostgreSQL."
            ) from error
        if self.needs_tables:
            state = migrations.state(engine)
            if state == "empty":
                raise Refused(f"The database {place.shown} has no tables of ours yet: run `remotegpu init`.")
            if state == "behind":
                raise Refused("The database is from an older version: back it up, then run `remotegpu upgrade-db`.")
            if state == "ahead":
                raise Refused("The database is from a newer version of remotegpu-hub: install that version again.")
        return engine

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Session]:
        with begin(self.engine, read_only=read_only) as session:
            yield session

    @property
    def actor(self) -> Actor:
        """Who stands in the audit log: the system user, or who became root by sudo."""
        uid = os.getuid()
        try:
            login = pwd.getpwuid(uid).pw_name
        except KeyError:
            login = str(uid)
        if uid == 0:
            login = os.environ.get("SUDO_USER") or login
        return Actor(f"cli:{login}"[:255])

    # -- what is printed --

    def show_rows(self, kind: str, rows: Sequence[Row], columns: Sequence[Column], *, empty: str) -> None:
        """Print a list: `{"kind": [...]}` for programs, a table for people, or the sentence `empty`."""
        if self.json:
            self.say(tables.dump({kind: rows}))
        else:
            self.say(tables.table(columns, rows) if rows else empty)

    def show_one(self, kind: str, row: Row, sentence: str) -> None:
        """Print one thing that was made or changed: `{"kind": {...}}` for programs, a sentence for people."""
        self.say(tables.dump({kind: row}) if self.json else tables.printable(sentence))

    def say(self, text: str) -> None:
        sys.stdout.write(text + "\n")

    # -- help --

    @property
    def usage(self) -> str:
        words = " ".join((self.path, *self.words))
        return f"`{words} [OPTIONS]`" if type(self).options() else f"`{words}`"

    def print_help(self, classes: bool = False) -> None:
        self.say("\n".join(self.emit_help(classes)))

    def emit_help(self, classes: bool = False) -> Generator[str, None, None]:
        """Usage, what it does, its subcommands, its options, examples."""
        yield f"Usage: {self.usage.strip('`')}"
        if self.subcommands:
            yield f"       {self.path} COMMAND …"
        yield ""
        yield from (_filled(part) for part in str(self.description).strip().split("\n"))
        if self.subcommands:
            yield "\nCommands:"
            size = max(len(name) for name in self.subcommands)
            yield from (f"  {name.ljust(size)}  {text}" for name, (_app, text) in self.subcommands.items())
        yield "\nOptions:"
        for _name, trait in type(self).options():
            facts = trait.metadata
            head = f"--{facts['option']}" + (f" {facts['shown']}" if facts["shown"] else "")
            if facts["short"]:
                head = f"-{facts['short']}, {head}"
            if isinstance(trait, List):
                head += " (may be repeated)"
            yield f"  {head}"
            yield indent(_filled(" ".join(str(trait.help).split()), HELP_WIDTH - 6), " " * 6)
        yield "  -h, --help\n      Print this."
        if self.examples:
            yield "\nExamples:"
            yield indent(str(self.examples).strip(), "  ")


def _filled(text: str, width: int = HELP_WIDTH) -> str:
    return fill(text, width, break_on_hyphens=False)  # options stay whole


def _names(keys: Any) -> tuple[str, ...]:
    return keys if isinstance(keys, tuple) else (keys,)


def whole(text: str, name: str) -> int:
    """Read a whole number that was typed. Raises: Usage."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise Usage(f"{name} is a whole number, not `{text}`.")
    return int(text)


def chosen(kinds: type[E], text: str | None, name: str, *, without: Sequence[E] = ()) -> E | None:
    """Read an enum's value that was typed for an option. Raises: Usage naming what is possible."""
    if text is None:
        return None
    values = [str(one.value) for one in kinds if one not in without]  # type: ignore[attr-defined]
    if text not in values:
        raise Usage(f"{name} is one of {', '.join(values)}, not `{text}`.")
    return kinds(text)  # type: ignore[call-arg]
