"""A real Kubernetes for the tests: one that is started here, with a real kubelet, a registry with a password, and
simulated GPUs. Where KUBECONFIG names a cluster, the tests that need no kubelet of this machine take that one instead
(the fixture `api_server`).

Binaries come from KUBEBUILDER_ASSETS, or are built once from Debian's source and kept in ~/.cache. Where the former lacks
a kubelet, there is no node; the tests that need one are left out, and say so."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
NODE = "gpu-node-a"
BRIDGE_ADDRESS = "10.88.8.1"
REGISTRY_USER, REGISTRY_PASSWORD = "robot", "secret"

sys.path.insert(0, str(HERE.parent.parent / "tools"))
from install import has_kubernetes  # noqa: E402


class ClusterMissing(Exception):
    """No cluster can be had here; the text says why."""


@dataclass(frozen=True)
class LocalCluster:
    """One that was started here: the tests may break it."""

    kubeconfig: str
    registry: str
    state: Path
    """Folder of its processes' logs and pids."""
    node: str = NODE
    address: str = BRIDGE_ADDRESS
    """Where pods reach what listens on this machine, and node ports answer."""

    def digest_of(self, image: str) -> str:
        """What the registry has under `name:tag`."""
        name, tag = image.split(":")
        request = urllib.request.Request(
            f"http://{self.registry}/v2/{name}/manifests/{tag}",
            method="HEAD",
            headers={
                "Authorization": "Basic " + _encoded(f"{REGISTRY_USER}:{REGISTRY_PASSWORD}"),
                "Accept": "application/vnd.docker.distribution.manifest.v2+json, "
                "application/vnd.oci.image.manifest.v1+json",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers["Docker-Content-Digest"])

    def pull_secret(self, name: str, password: str = REGISTRY_PASSWORD) -> dict[str, object]:
        """The Secret with which a pod may pull from the registry."""
        login = {"auths": {self.registry: {"auth": _encoded(f"{REGISTRY_USER}:{password}")}}}
        return {
            "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": _encoded(json.dumps(login))},
        }

    def pid(self, process: str) -> int:
        return int((self.state / f"{process}.pid").read_text())

    def has(self, process: str) -> bool:
        return (self.state / f"{process}.pid").exists()


def current(kubeconfig: str) -> dict[str, Any]:
    """A kubeconfig with nothing in it but the current context, its cluster and its user."""
    given = yaml.safe_load(Path(kubeconfig).read_text())

    def named(kind: str, name: str) -> Any:
        return next(one for one in given[kind] if one["name"] == name)

    context = named("contexts", given["current-context"])
    return {
        **given, "contexts": [context], "clusters": [named("clusters", context["context"]["cluster"])],
        "users": [named("users", context["context"]["user"])],
    }  # fmt: skip


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@contextmanager
def found_or_started() -> Iterator[LocalCluster]:
    """The one whose folder REMOTEGPU_TEST_CLUSTER names (what `STATE=… up.sh` started), else a new one.

    Raises: ClusterMissing.
    """
    given = os.environ.get("REMOTEGPU_TEST_CLUSTER")
    if given:
        yield LocalCluster(f"{given}/kubeconfig", "127.0.0.1:15000", Path(given))
        return
    with running() as cluster:
        yield cluster


@contextmanager
def running() -> Iterator[LocalCluster]:
    """Start one and stop it at the end. Raises: ClusterMissing."""
    if os.geteuid() != 0:
        raise ClusterMissing("starting one needs root")
    if not has_kubernetes():
        raise ClusterMissing("its binaries are not there: `make test` as root builds them (tests/cluster/assets.sh)")
    state = Path(tempfile.mkdtemp(prefix="remotegpu-cluster-"))
    environment = {**os.environ, "STATE": str(state), "PYTHON": sys.executable}
    started = subprocess.run([HERE / "up.sh"], env=environment, capture_output=True, text=True)
    try:
        if started.returncode:
            raise ClusterMissing(f"it did not start: {started.stderr[-2000:]}")
        said = dict(line.removeprefix("export ").split("=", 1) for line in started.stdout.split("\n") if "=" in line)
        yield LocalCluster(said["KUBECONFIG"], said["REGISTRY"], state)
    finally:
        subprocess.run([HERE / "down.sh"], env=environment, capture_output=True)
        shutil.rmtree(state, ignore_errors=True)
