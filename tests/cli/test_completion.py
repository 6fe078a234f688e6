"""What shells complete, asked in the shells themselves."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from remotegpu_hub.app import RemoteGPUApp
from remotegpu_hub.cli.completion import places

PLACES = {place.path: place for place in places(RemoteGPUApp)}

BASH = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_remotegpu
printf '%s\n' "${COMPREPLY[@]}"
"""
ZSH = r"""
compdef() { [[ "$*" == "_remotegpu remotegpu" ]] || print -u2 "compdef $*" }
source "$1"; shift
words=("$@"); CURRENT=$#
_describe() { print -rl -- ${${(P)2}%%:*} }
_files() { print -rl -- *(N) }
_remotegpu
"""
FISH = r"""
source $argv[1]
complete -C (string join ' ' -- (string escape --no-quoted -- $argv[2..-1])) | string replace -r '\t.*' ''
"""
SHELLS = {"bash": ["bash", "--norc", "-c", BASH, "x"], "zsh": ["zsh", "-f", "-c", ZSH, "x"],
          "fish": ["fish", "--no-config", "-c", FISH]}  # fmt: skip


@pytest.fixture(params=SHELLS)
def complete(request, call, folder):
    """Ask a shell what may stand in the place of the last of these words."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    script = folder / f"completion.{shell}"
    script.write_text(call("completion", shell).out)
    (folder / "known-file").touch()

    def ask(*words: str) -> set[str]:
        said = subprocess.run(
            [*SHELLS[shell], str(script), "remotegpu", *words], capture_output=True, text=True, timeout=60, cwd=folder
        )
        assert said.stderr == ""
        return {line for line in said.stdout.splitlines() if line.startswith(words[-1])}

    return ask


def test_commands_options_and_values_are_completed(complete):
    assert complete("") - {"--help"} == set(RemoteGPUApp.subcommands)
    assert complete("wor") == {"workspaces"}
    assert complete("workspaces", "") >= {"list", "create", "show", "update", "archive"}
    assert complete("workspaces", "create", "vision", "--o") == {"--owner"}
    assert complete("workspaces", "create", "--kind", "") == {"team", "enterprise"}
    assert complete("members", "add", "lab", "bob", "--role", "a") == {"admin"}
    assert complete("hosts", "--") >= {"--json", "--config", "--db-file", "--hub"}
    assert complete("completion", "") >= {"bash", "zsh", "fish"}
    assert "known-file" in complete("hosts", "--config", "")
    assert "known-file" in complete("ssh-keys", "add", "alice", "")
    assert "known-file" not in complete("workspaces", "create", "--owner", "")
    assert "--hub" not in complete("doctor", "--")


def test_every_command_and_option_of_the_declarations_is_completed(complete):
    for path, place in PLACES.items():
        words = path.split()
        if place.commands:
            assert complete(*words, "") >= {one.text for one in place.commands}, path
        long = {one.text for one in place.options if one.text.startswith("--")}
        assert complete(*words, "--") == long, path


def test_completing_is_quick(complete):
    """No Python starts for it, which would take a second."""
    took = []
    for _ in range(5):
        began = time.monotonic()
        complete("workspaces", "create", "--")
        took.append(time.monotonic() - began)
    assert min(took) < 0.3, took


def test_the_script_is_of_the_shell_that_was_named(call):
    assert "none of bash, zsh, fish" in call("completion", "tcsh").err
    assert call("completion").code == 2
    assert not Path("completion").exists()
