"""Install what the demo or the tests need: a virtual environment, Python packages, the proxy, system packages.

Safe to run again, and twice at once; what is there already costs a look. Started by setup.py.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remotegpu-hub"
PROXY = ROOT / "tools" / "proxy"
STAMP = VENV / "remotegpu-setup.json"


class Trouble(Exception):
    """A sentence for the person at the terminal."""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done while it is done, and how long it took."""
    began = time.monotonic()
    print(f"set-up: {what} ...", flush=True)
    yield
    print(f"set-up: {what}: {time.monotonic() - began:.1f} s", flush=True)


@contextmanager
def alone() -> Iterator[None]:
    """Let one set-up run at a time; others wait and then find everything done."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: another set-up is running; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str], *, failed: str, **options: object) -> None:
    """Run quietly; when it fails, show the end of what it said, and the sentence."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-25:]), file=sys.stderr)
        raise Trouble(failed)


def virtual_environment() -> None:
    """Make `.venv` where there is none that works."""
    works = [str(VENV / "bin" / "python"), "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    try:
        if STAMP.exists() or subprocess.run(works, capture_output=True, check=False).returncode == 0:
            return
    except OSError:
        pass
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise Trouble("Python's venv module is missing: run `apt install python3-venv`, then try again.") from None
    with step("virtual environment"):
        run([sys.executable, "-m", "venv", "--clear", str(VENV)], failed="The virtual environment could not be made.")


def pyproject() -> str:
    """Tells one state of what pip was asked for from another."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()


def installed() -> list[str]:
    """The extras that were installed from pyproject.toml as it is now."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return []
    return list(stamp["extras"]) if stamp.get("pyproject") == pyproject() else []


def python_packages(extra: str) -> None:
    """Install this project with an extra, when pyproject.toml is not the one it was last installed from."""
    extras = installed()
    if extra in extras or "test" in extras:
        return
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with step("Python packages (minutes the first time)"):
        run(
            [*pip, "install", "--quiet", "--editable", f".[{extra}]"],
            failed="pip could not install the Python packages: see above. Is the network there?",
            cwd=ROOT,
        )
    STAMP.write_text(json.dumps({"pyproject": pyproject(), "extras": [*extras, extra]}))


def proxy() -> None:
    """Install configurable-http-proxy into the cache, and put its command beside the hub's."""
    digest = hashlib.sha256((PROXY / "package.json").read_bytes() + (PROXY / "package-lock.json").read_bytes())
    target = CACHE / f"proxy-{digest.hexdigest()[:16]}"
    command = target / "node_modules" / ".bin" / "configurable-http-proxy"
    if not command.exists():
        with step("proxy"):
            folder = Path(tempfile.mkdtemp(prefix="proxy-", dir=CACHE))
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(PROXY / name, folder)
            run(
                ["npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts"],
                failed="npm could not install the proxy: see above. Is the network there?",
                cwd=folder,
            )
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
    link = VENV / "bin" / "configurable-http-proxy"
    if not link.is_symlink() or link.readlink() != command:
        fresh = link.with_name(".configurable-http-proxy-new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(command)
        fresh.replace(link)


def has_postgresql() -> bool:
    return bool(shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres")))


def has_chromium() -> bool:
    return any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))


def has_chinese() -> bool:
    return any(Path("/usr/share/fonts").glob("**/wqy-microhei.tt[cf]"))


SYSTEM: dict[str, tuple[Callable[[], bool], str]] = {
    "postgresql": (has_postgresql, "every test with [postgresql] in its name, and those that use pg_url"),
    "chromium": (has_chromium, "the tests in tests/e2e"),
    "fonts-wqy-microhei": (has_chinese, "none, but screenshots show Chinese as boxes"),
}


def system_packages() -> None:
    """Install what the tests need of the system, under root; otherwise say loudly what that will skip."""
    missing = [name for name, (there, _) in SYSTEM.items() if not there()]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        with step(f"system packages: {', '.join(missing)}"):
            for command in (["apt-get", "update"], install):
                try:
                    run(command, failed="apt-get failed", env=environment, timeout=900)
                except (Trouble, subprocess.TimeoutExpired) as error:
                    print(f"set-up: {error}", file=sys.stderr)
    for name, (there, skipped) in SYSTEM.items():
        if not there():
            print(f"set-up: !!! {name} IS NOT INSTALLED. Skipped for that: {skipped}.", flush=True)


KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")
SKIPPED_WITHOUT = "every test that starts a cluster (tests/hub/test_kube.py and more)"


def has_kubernetes() -> bool:
    """Whether the tests can start what they may; of binaries that the tester names an API server is enough."""
    given, own = os.environ.get("KUBEBUILDER_ASSETS"), Path.home() / ".cache/remotegpu-test-cluster/k8s-1.20.2"
    wanted = [Path(given) / "kube-apiserver"] if given else [own / name for name in KUBERNETES]
    peers = ("etcd", "containerd", "runc", "docker-registry", "htpasswd", "iptables", "ssh")
    there = [*wanted, own.parent / "openssh/sshd"]
    return all(path.exists() for path in there) and all(shutil.which(name) for name in peers)


def kubernetes() -> None:
    """Build the test cluster's binaries once from Debian's source, under root, into a cache outside the checkout."""
    if not has_kubernetes() and os.geteuid() == 0 and shutil.which("apt-get"):
        with step("Kubernetes for the tests (five minutes the first time)"):
            try:
                run(
                    [str(ROOT / "tests" / "cluster" / "assets.sh")],
                    failed="Kubernetes could not be built",
                    timeout=1800,
                )
            except (Trouble, subprocess.TimeoutExpired) as error:
                print(f"set-up: {error}", file=sys.stderr)
    if not has_kubernetes():
        print(f"set-up: !!! KUBERNETES IS NOT INSTALLED. Skipped for that: {SKIPPED_WITHOUT}.", flush=True)


def main(arguments: list[str]) -> int:
    if arguments not in (["demo"], ["test"]):
        print("say `setup.py demo` or `setup.py test`", file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        with alone():
            virtual_environment()
            python_packages(arguments[0])
            proxy()
            if arguments == ["test"]:
                system_packages()
                kubernetes()
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"set-up: done in {time.monotonic() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
