"""A real hub whose environments are pods of the test cluster."""

import json
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes.aio
import yaml
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from remotegpu_hub import workers
from remotegpu_hub.clients.cluster import Cluster
from remotegpu_hub.clients.kubernetes import PODS, SECRETS, Kind, Kubernetes
from remotegpu_hub.clients.nodes import ALLOCATION_LABEL, HUB_LABEL
from remotegpu_hub.db import begin
from remotegpu_hub.domain import inventory, quotas, users, workspaces
from remotegpu_hub.orm import Allocation

from .cluster.cluster import LocalCluster, current
from .gpu_hubs import HOWS, SERVER, GpuHub, Life, apart
from .hubs import RealHub

NAMESPACES = Kind("api/v1", "namespaces", namespaced=False)
ACCOUNTS = Kind("api/v1", "serviceaccounts")
_RBAC = "apis/rbac.authorization.k8s.io/v1"
RULES = {
    "ServiceAccount": ACCOUNTS,
    "Role": Kind(_RBAC, "roles"),
    "RoleBinding": Kind(_RBAC, "rolebindings"),
    "ClusterRole": Kind(_RBAC, "clusterroles", namespaced=False),
    "ClusterRoleBinding": Kind(_RBAC, "clusterrolebindings", namespaced=False),
}
ROOT = Path(__file__).resolve().parent.parent
IMAGE = "library/base"
TAG = "1.0"
A100 = "A100-SXM4-80GB"
SSHD = Path.home() / ".cache/remotegpu-test-cluster/openssh"
SHARED = ("/usr", "/lib", "/lib64", "/bin")
EATER = """
import os, sys, threading, time
def eat():
    while not os.path.exists(f"{sys.argv[2]}/eat"):
        time.sleep(0.05)
    eaten = []
    while True:
        eaten.append(b"x" * 2**23)
if sys.argv[1] == "hungry":
    threading.Thread(target=eat, daemon=True).start()
if sys.argv[1] == "writer":
    note = os.path.expanduser("~/note")
    while not os.access(os.path.dirname(note), os.W_OK):
        time.sleep(0.05)
    os.environ["REMOTEGPU_FOUND_AT_HOME"] = str(int(os.path.exists(note)))
    open(note, "w").close()
    shared = os.path.expanduser("~/shared")
    if os.path.isdir(shared):
        while not os.access(shared, os.W_OK):
            time.sleep(0.05)
        os.environ["REMOTEGPU_FOUND_SHARED"] = " ".join(sorted(os.listdir(shared)))
        open(f"{shared}/{os.environ['JUPYTERHUB_USER']}", "w").close()
if sys.argv[1] == "talker":
    def talk():
        print("one\\ntwo\\nthree", flush=True)
        while not os.path.exists(f"{sys.argv[2]}/talk"):
            time.sleep(0.05)
        print("four", flush=True)
    threading.Thread(target=talk, daemon=True).start()
"""
"""`hungry` uses more memory than it has as soon as there is a file `eat`; `writer` leaves a file in its home and one in
what is shared; `talker` prints three lines, and a fourth one when there is a file `talk`."""


class KubeHub(GpuHub):
    """A hub outside the cluster with its own namespace in it; users `alice` and `bob` in the workspace `lab`."""

    def __init__(
        self,
        folder: Path,
        cluster: LocalCluster,
        before: str = "",
        *,
        members: Sequence[str] = ("alice", "bob"),
        namespace: str | None = None,
        configured: bool = True,
        **given: Any,
    ) -> None:
        """Without `configured` it is plain KubeSpawner, for comparison. Images are called after how their server behaves; all are one image of the registry."""
        folder = folder.resolve()
        self.cluster, self.members, self.configured = cluster, members, configured
        self.gpus, self.model_of_gpus = 8, A100
        self.guest = namespace is not None
        """The namespace is another hub's."""
        self.namespace = namespace or f"hub-{uuid4().hex[:8]}"
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.runs.chmod(0o777)
        (self.runs / "server.py").write_text(EATER + SERVER)
        mounts = [*SHARED, sys.base_prefix, sysconfig.get_path("stdlib").rsplit("/lib/", 1)[0], sys.prefix,
                  str(ROOT)]  # fmt: skip
        volumes = [
            {"name": f"m{number}", "hostPath": {"path": path}} for number, path in enumerate(dict.fromkeys(mounts))
        ]
        volume_mounts = [
            {"name": one["name"], "mountPath": one["hostPath"]["path"], "readOnly": True} for one in volumes
        ]
        volumes.append({"name": "sshd", "hostPath": {"path": str(SSHD)}})  # no image here has one of its own
        volume_mounts.append({"name": "sshd", "mountPath": "/usr/local/sbin", "readOnly": True})
        volumes.append({"name": "runs", "hostPath": {"path": str(self.runs)}})
        volume_mounts.append({"name": "runs", "mountPath": str(self.runs)})
        digest = cluster.digest_of(f"{IMAGE}:{TAG}")
        images = {
            self.image(how): {
                "display_name": f"{number} {how}",
                "digest": digest,
                "cmd": [sys.executable, "-S", "-E", str(self.runs / "server.py")],
                "args": [how, str(self.runs), str(self.runs)],
            }
            for number, how in enumerate((*HOWS, "hungry", "writer", "talker"))
        }
        images[self.image("lab")] = {
            "display_name": "JupyterLab on a pod",
            "digest": digest,
            "cmd": [sys.executable, "-m", "jupyterhub.singleuser"],
        }
        images[self.image("missing")] = {**images[self.image("plain")], "digest": "sha256:" + "0" * 64}
        common = f"""
c.JupyterHub.hub_ip = "{cluster.address}"
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
c.KubeSpawner.namespace = "{self.namespace}"
c.KubeSpawner.image_pull_secrets = ["registry"]
c.KubeSpawner.volumes = {volumes!r}
c.KubeSpawner.volume_mounts = {volume_mounts!r}
c.KubeSpawner.uid = 1000
c.KubeSpawner.environment = {{"LD_LIBRARY_PATH": "/usr/local/sbin"}}
c.KubeSpawner.delete_grace_period = 1
c.KubeSpawner.start_timeout = 60
c.Spawner.poll_interval = 1
c.Spawner.http_timeout = 20
"""
        ours = f"""
from remotegpu_hub.configure import configure
c.RemoteGPUKubeSpawner.trouble_seconds = 3
c.RemoteGPU.port_ranges = {{"tensorboard": (31000, 31009), "custom": (31010, 31019), "ssh": (31020, 31029)}}
c.RemoteGPU.pools = [{{"name": "gpus", "simulated": True}}]
c.RemoteGPU.default_cpu, c.RemoteGPU.default_memory = "0.1", "128M"
c.RemoteGPU.images = {images!r}
c.RemoteGPU.home_size = "1G"
c.RemoteGPU.personal_quota = {{"cpu": "1", "memory": "1G", "environments": 3}}
{before}
configure(c)
"""
        self.kubeconfig = folder / "kubeconfig"
        self.plain_image = images[self.image("plain")]
        self._common = common
        text = common + (ours if configured else before)
        RealHub.__init__(self, folder, text, environment={"KUBECONFIG": str(self.kubeconfig)}, **given)
        self.api_url = self.api_url.replace("127.0.0.1", cluster.address)

    def reconfigure(self, more: str) -> None:
        """Of a plain hub: what stands below the common part."""
        self.configure(self._common + more)

    def image(self, how: str) -> str:
        return f"{self.cluster.registry}/{IMAGE}:{how}"

    def start_server(self, user: str, options: Mapping[str, Any] | None = None, *, server: str = "") -> Life:
        """Start in the workspace `lab`, one plain server without a GPU unless said otherwise."""
        wish = {"workspace": "lab", "image": self.image("plain"), "gpus": 0, "ports": [], **(options or {})}
        return super().start_server(user, wish, server=server)

    def start(self, timeout_seconds: float = 180) -> None:
        apart(self._prepare())
        if self.configured:
            super().start(timeout_seconds)
        else:
            RealHub.start(self, timeout_seconds)

    def seed(self) -> None:
        super().seed()
        self.world.price(f"gpu:{A100}", 3600)

    def close(self) -> None:
        try:
            super().close()
        finally:
            if not self.guest:
                self.kube(self._sweep_away)

    async def _sweep_away(self, kube: Kubernetes) -> None:
        await kube.delete(NAMESPACES, self.namespace)
        for rule in self._rules():
            if rule["kind"].startswith("Cluster"):
                await kube.delete(RULES[rule["kind"]], rule["metadata"]["name"])

    async def _prepare(self) -> None:
        kube = await self._connect()
        await kube.ensure(NAMESPACES, {"metadata": {"name": self.namespace}}, labels={})
        await kube.ensure(SECRETS, self.cluster.pull_secret("registry"), self.namespace, labels={})
        for rule in self._rules():
            await kube.ensure(RULES[rule["kind"]], rule, self.namespace, labels={})
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        path = ACCOUNTS.path(self.namespace, "remotegpu-hub", "token")
        token = (await kube._json("POST", path, body=asked))["status"]["token"]
        await kube.close()
        self._write_kubeconfig(token)

    def _write_kubeconfig(self, token: str) -> None:
        """The tests' own, with the hub's account in place of the admin's."""
        given = current(self.cluster.kubeconfig)
        given["users"] = [{"name": given["contexts"][0]["context"]["user"], "user": {"token": token}}]
        self.kubeconfig.write_text(yaml.safe_dump(given))

    def _rules(self) -> list[dict[str, Any]]:
        """The rules of the documentation, for this namespace: the hub gets no more than they say."""
        text = (ROOT / "docs" / "kubernetes-rbac.yaml").read_text().replace("namespace: jupyterhub", "namespace: NS")
        rules = list(yaml.safe_load_all(text.replace("namespace: NS", f"namespace: {self.namespace}")))
        for rule in rules:
            if rule["kind"].startswith("Cluster"):
                rule["metadata"]["name"] += f"-{self.namespace}"
                if "roleRef" in rule:
                    rule["roleRef"]["name"] = rule["metadata"]["name"]
        return rules

    async def _connect(self) -> Kubernetes:
        return await Kubernetes.connect(kubernetes.aio, kubeconfig=self.cluster.kubeconfig)

    def kube(self, work: Any) -> Any:
        """Ask the cluster something: `hub.kube(lambda kube: kube.list(PODS))`."""

        async def once() -> Any:
            kube = await self._connect()
            try:
                return await work(kube)
            finally:
                await kube.close()

        return apart(once())

    @asynccontextmanager
    async def site(self) -> AsyncIterator[workers.Site]:
        settings = self.runtime.settings
        cluster = Cluster(
            kubernetes.aio, hub_id=settings.hub_id, namespace=settings.namespace, pools=self.runtime.pools,
            grace_seconds=settings.stop_grace_seconds, kubeconfig=str(self.kubeconfig),
        )  # fmt: skip
        try:
            yield cluster
        finally:
            await cluster.close()

    def until(self, true: Callable[[], Any], what: str, seconds: float = 150) -> None:
        """Look less often than at processes: each look asks the cluster or the hub. A kubelet of 1.20 sometimes takes a
        minute until it says that a pod is gone."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.shown()}\n{self.log_tail()}"
            time.sleep(0.3)

    def log_tail(self) -> str:
        lines = self.log.read_text().splitlines()
        dull = ("ConfigProxy", "Setting new xsrf", "GET /hub/")
        return "\n".join([line for line in lines if not any(word in line for word in dull)][-60:])

    def until_free(self, user: str, server: str = "", *, seconds: float = 150) -> None:
        super().until_free(user, server, seconds=seconds)

    def stop_all(self) -> list[str]:
        """For the next test: without waiting for what the kubelet says."""
        for pod in self.pods():
            self.kube(lambda kube, name=pod["metadata"]["name"]: kube.delete(PODS, name, self.namespace, grace=0))
        return super().stop_all()

    def pods(self) -> list[dict[str, Any]]:
        labels = f"{HUB_LABEL}={self.hub_id}"
        found: list[dict[str, Any]] = self.kube(lambda kube: kube.list(PODS, self.namespace, labels=labels)).items
        return found

    def pod_of(self, user: str, server: str = "") -> dict[str, Any]:
        """The pod of the newest run."""
        run = self.run_of(user, server)
        return next(pod for pod in self.pods() if pod["metadata"]["labels"].get(ALLOCATION_LABEL) == str(run.id))

    def host_of(self, user: str) -> str:
        with begin(self.engine, read_only=True) as session:
            return session.get_one(Allocation, self.run_of(user).id).host.name

    def free(self, model: str = A100) -> int:
        """GPUs that can be had now."""
        with begin(self.engine, read_only=True) as session:
            return sum(one.free for one in inventory.stock(session) if one.model == model)

    def held_storage(self, user: str) -> int:
        with begin(self.engine, read_only=True) as session:
            row = users.current(session, name=user)
            space = workspaces.by_name(session, name="lab")
            found = quotas.levels(
                session, user_id=row.id, workspace_id=space.id, time_zone="UTC", now=datetime.now(UTC)
            )  # fmt: skip
            return found["user"].held["storage_bytes"]

    def host_status(self) -> str:
        with begin(self.engine, read_only=True) as session:
            return inventory.host_by_name(session, name=self.cluster.node).status.value

    def shown(self) -> str:
        """All pods, for a failure's message."""
        return json.dumps([pod["status"] for pod in self.pods()], indent=1)

    @cached_property
    def hub_id(self) -> str:
        return self.runtime.settings.hub_id

    def check(self) -> None:
        """Assert that what is held runs, that what runs is held, and that all sums are right."""
        self.world.check()
        self.until(
            lambda: (
                {int(pod["metadata"]["labels"].get(ALLOCATION_LABEL, -1)) for pod in self.pods()}
                == {run.id for run in self.open_runs()}
            ),
            "what lives is held",
        )
