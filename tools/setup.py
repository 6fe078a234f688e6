"""Find a Python and a Node.js that are new enough, then install what `make demo` or `make test` needs.

Any Python can read this file, so that an old one gets a sentence and not a traceback: keep it that way.
"""

# ruff: noqa: UP010, UP031, RUF005
from __future__ import print_function

import os
import subprocess
import sys

OLDEST_PYTHON = (3, 11)
OLDEST_NODE = 20
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def answer(*command):
    """What a command prints, stripped; nothing when it is missing or fails."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output = process.communicate()[0]
    except (OSError, ValueError):
        return ""
    return output.decode("utf-8", "replace").strip() if process.returncode == 0 else ""


def new_enough(python):
    said = answer(python, "-c", "import sys; print('%d %d' % sys.version_info[:2])")
    return tuple(int(part) for part in said.split()) >= OLDEST_PYTHON if said else False


def find_python():
    """This Python, or the first other one that is new enough; None when there is none."""
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return sys.executable
    others = [os.path.join(ROOT, ".venv", "bin", "python"), "python3.13", "python3.12", "python3.11", "python3.14"]
    for python in others:
        if new_enough(python):
            return python
    return None


def complain():
    """One sentence on what is missing; empty when nothing is."""
    if find_python() is None:
        return "Python %d.%d or newer is needed; this is %d.%d. Install it (Debian, Ubuntu: apt install python3)." % (
            OLDEST_PYTHON + tuple(sys.version_info[:2])
        )
    said = answer("node", "--version")
    digits = said.lstrip("v").split(".")[0]
    if not digits.isdigit() or int(digits) < OLDEST_NODE:
        return "Node.js %d or newer is needed for JupyterHub's proxy; %s. Install it: nodejs.org." % (
            OLDEST_NODE,
            "this is %s" % said if said else "there is no `node` here",
        )
    if not answer("npm", "--version"):
        return "npm is needed to install JupyterHub's proxy, and it is missing (Debian, Ubuntu: apt install npm)."
    return ""


def main():
    trouble = complain()
    if trouble:
        print(trouble, file=sys.stderr)
        return 1
    python = find_python()
    if python != sys.executable:
        program = os.path.join(ROOT, "tools", "install.py")
        return subprocess.call([python, program] + sys.argv[1:])
    import install

    return install.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
