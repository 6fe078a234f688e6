"""`remotegpu completion`: what a shell completes, written out from the commands' own declarations. A shell reads it
once, and then completes without starting Python, which would take a second at each press of the key."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from shlex import quote
from typing import Any

from traitlets import Bool

from .command import Command
from .stop import Usage

FILE = "FILE"


@dataclass(frozen=True)
class Choice:
    """Something that can be typed, and what it is for."""

    text: str
    about: str
    takes_value: bool = False
    file: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """A command by the words that lead to it, and what may follow it."""

    path: str
    commands: tuple[Choice, ...]
    options: tuple[Choice, ...]
    values: tuple[str, ...]
    """Of the first word behind it."""
    file: bool
    """A word behind it is a file."""

    @property
    def choices(self) -> list[Choice]:
        return [*self.commands, *(Choice(value, "") for value in self.values), *self.options]


def places(command: type[Command], path: str = "") -> Iterator[Place]:
    """The command and all below it."""
    below = {} if not isinstance(command.subcommands, dict) else command.subcommands
    options = [_option(trait) for _name, trait in command.options()] if path else []
    yield Place(
        path,
        tuple(Choice(name, about) for name, (_class, about) in below.items()),
        (*chain.from_iterable(options), Choice("--help", "say how it is used")),
        tuple(command.values),
        any(FILE in word for word in command.words),
    )
    for name, (one, _about) in below.items():
        yield from places(one, f"{path} {name}".strip())


def _option(trait: Any) -> list[Choice]:
    facts = trait.metadata
    about = " ".join(str(trait.help).split()).split(". ")[0].rstrip(".").replace("`", "")
    given = (about, not isinstance(trait, Bool), facts["shown"] == FILE, tuple(facts["values"]))
    return [Choice(f"--{facts['option']}", *given), *([Choice(f"-{facts['short']}", *given)] if facts["short"] else [])]


def bash(found: Sequence[Place]) -> str:
    """For ~/.bashrc."""
    files = 'COMPREPLY=( $(compgen -f -- "$word") ); compopt -o filenames 2>/dev/null; return'
    return _SHELL.format(
        head='local at="" word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}" found=""',
        one='(( COMP_CWORD > 1 )) && at="${COMP_WORDS[1]}"',
        two='(( COMP_CWORD > 2 )) && at2="$at ${COMP_WORDS[2]}"',
        known="|".join(quote(place.path) for place in found if " " in place.path),
        files=files,
        nothing="COMPREPLY=(); return",
        values=_values(found, lambda values: f"found={quote(' '.join(values))}"),
        file_options=_those(found, lambda option: option.file),
        other_options=_those(found, lambda option: option.takes_value and not option.file and not option.values),
        choices=_choices(found, lambda place: f"found={quote(' '.join(one.text for one in place.choices))}"),
        tail='COMPREPLY=( $(compgen -W "$found" -- "$word") )',
        file_places=_file_places(found),
        filing=f"[[ $word != -* ]] && {{ {files}; }}",
        end="complete -F _remotegpu remotegpu",
    )


def zsh(found: Sequence[Place]) -> str:
    """For ~/.zshrc, after compinit, or as a file _remotegpu in $fpath."""

    def described(place: Place) -> str:
        texts = (f"{one.text.replace(':', chr(92) + ':')}:{one.about}" for one in place.choices)
        return f"found=({' '.join(map(quote, texts))})"

    script = _SHELL.format(
        head='local at="" at2="" word="${words[CURRENT]}" before="${words[CURRENT - 1]}"; local -a found',
        one='(( CURRENT > 2 )) && at="${words[2]}"',
        two='(( CURRENT > 3 )) && at2="$at ${words[3]}"',
        known="|".join(quote(place.path) for place in found if " " in place.path),
        files="_files; return",
        nothing="return",
        values=_values(found, lambda values: f"found=({' '.join(map(quote, values))})"),
        file_options=_those(found, lambda option: option.file),
        other_options=_those(found, lambda option: option.takes_value and not option.file and not option.values),
        choices=_choices(found, described),
        tail="_describe remotegpu found",
        file_places=_file_places(found),
        filing="[[ $word != -* ]] && { _files; return; }",
        end='if [[ $funcstack[1] == _remotegpu ]]; then _remotegpu "$@"; else compdef _remotegpu remotegpu; fi',
    )
    return f"#compdef remotegpu\n{script}"


_SHELL = """\
_remotegpu() {{
    {head}
    local at2=""
    {one}
    {two}
    case "$at2" in
        {known}) at="$at2" ;;
    esac
    case "$at $before" in
{values}
        {file_options}) {files} ;;
        {other_options}) {nothing} ;;
        *)
            case "$at" in
                {file_places}) {filing} ;;
            esac
            case "$at" in
{choices}
            esac ;;
    esac
    {tail}
}}
{end}
"""


def _those(found: Sequence[Place], which: Callable[[Choice], bool]) -> str:
    """The options of this kind, each behind its command, as patterns of a `case`."""
    return "|".join(
        quote(f"{place.path} {option.text}") for place in found for option in place.options if which(option)
    )


def _values(found: Sequence[Place], written: Callable[[tuple[str, ...]], str]) -> str:
    return "\n".join(
        f"        {quote(f'{place.path} {option.text}')}) {written(option.values)} ;;"
        for place in found
        for option in place.options
        if option.values
    )


def _choices(found: Sequence[Place], written: Callable[[Place], str]) -> str:
    return "\n".join(f"                {quote(place.path)}) {written(place)} ;;" for place in found)


def _file_places(found: Sequence[Place]) -> str:
    return "|".join(quote(place.path) for place in found if place.file)


def fish(found: Sequence[Place]) -> str:
    """For ~/.config/fish/completions/remotegpu.fish."""
    lines = [_FISH.format(known=" ".join(quote(place.path) for place in found if " " in place.path))]
    for place in found:
        at = f"complete -c remotegpu -n {quote(f'__remotegpu_at {quote(place.path)}')}"
        for one in (*place.commands, *(Choice(value, "") for value in place.values)):
            lines.append(f"{at} -f -a {quote(one.text)} -d {quote(one.about)}")
        if not place.file:
            lines.append(f"{at} -f")
        for option in place.options:
            name = f"-l {option.text[2:]}" if option.text.startswith("--") else f"-s {option.text[1:]}"
            value = ""
            if option.takes_value:
                value = " -r -F" if option.file else f" -x -a {quote(' '.join(option.values))}"
            lines.append(f"{at} {name}{value} -d {quote(option.about)}")
    return "\n".join(lines) + "\n"


_FISH = """\
function __remotegpu_at
    set -l typed (commandline -opc)
    set -l at "$typed[2]"
    if contains -- "$typed[2] $typed[3]" {known}
        set at "$typed[2] $typed[3]"
    end
    test "$at" = "$argv[1]"
end"""

SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


class Completion(Command):
    name = "completion"
    hides = frozenset({"json", "config_file", "db_file"})
    words = ("SHELL",)
    values = tuple(SHELLS)
    description = (
        "Print what makes a shell complete commands and options: SHELL is bash, zsh or fish. It speaks for this "
        "version: renew it after an upgrade."
    )
    examples = (
        "remotegpu completion bash > ~/.local/share/bash-completion/completions/remotegpu\n"
        "remotegpu completion zsh > ~/.zfunc/_remotegpu      # a folder of $fpath, set before compinit\n"
        "remotegpu completion fish > ~/.config/fish/completions/remotegpu.fish"
    )

    def run(self) -> None:
        shell = SHELLS.get(self.need(0))
        if shell is None:
            raise Usage(f"`{self.need(0)}` is none of {', '.join(SHELLS)}.")
        root: Any = self
        while isinstance(root.parent, Command):
            root = root.parent
        self.say(shell(list(places(type(root)))).rstrip("\n"))
