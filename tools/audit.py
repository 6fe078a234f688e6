"""Look up the installed packages in the lists of known vulnerabilities, or say loudly that this was not possible.

.venv/bin/python tools/audit.py            exit 1 when something is found
.venv/bin/python tools/audit.py --advise   only tell: a new entry in a list must not stop an unrelated change
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 60
FURNITURE = {"pip", "setuptools", "wheel"}
"""Came with the virtual environment; no program of ours uses them."""


class NotRun(Exception):
    """Why an audit says nothing."""


def answer(command: list[str], folder: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotRun(f"no answer within {TIMEOUT_SECONDS} s") from None
    except OSError as error:
        raise NotRun(str(error)) from None
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise NotRun((done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]) from None
    return found


def python_packages() -> list[str]:
    """Findings of pip-audit. What it could not look up counts as not audited, not as safe."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format", "json"]
    packages = answer([*command, "--progress-spinner", "off"], ROOT)["dependencies"]
    unknown = [package for package in packages if "skip_reason" in package]
    if len(unknown) * 2 > len(packages):
        raise NotRun(f"{len(unknown)} of {len(packages)} packages could not be looked up")
    return [
        f"{package['name']} {package['version']}: {hole['id']}, fixed in {hole['fix_versions'] or 'no version yet'}"
        for package in packages
        for hole in package.get("vulns", ())
        if package["name"] not in FURNITURE
    ]


def node_packages() -> list[str]:
    found = answer(["npm", "audit", "--json", "--omit=dev"], ROOT / "tools" / "proxy")
    if "vulnerabilities" not in found:
        raise NotRun(str(found.get("message") or found.get("error"))[:300])
    return [f"{name}: {hole['severity']}, {hole['range']}" for name, hole in found["vulnerabilities"].items()]


def main() -> int:
    found = []
    for name, audit in (("pip-audit", python_packages), ("npm audit", node_packages)):
        try:
            holes = audit()
        except NotRun as reason:
            print(f"audit: !!! {name} DID NOT RUN, so it says nothing: {reason}")
            continue
        print(f"audit: {name}: {len(holes)} known vulnerabilities")
        found += [f"audit: !!! {hole}" for hole in holes]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found and "--advise" not in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
