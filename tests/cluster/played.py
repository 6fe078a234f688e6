"""Nodes that exist only as objects of a real cluster, and a process that plays their kubelets.

It says that pods run, at the address of one server that answers for all of them, takes them off the list when they are
to go, and renews leases. A `mute` server's pod is never begun.
"""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import kubernetes.aio
from aiohttp import web
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from remotegpu_hub.clients.kubernetes import NODES, PODS, Kind, Kubernetes, Mirror, Object
from remotegpu_hub.errors import NotFound
from tests.gpu_hubs import apart

MARK = "remotegpu-played"
MODEL = "H100-80GB-HBM3"
LEASES = Kind("apis/coordination.k8s.io/v1", "leases")
LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
RENEWAL_SECONDS = 20
PORT = 8888
AT_ONCE = 20
_MERGE = "application/merge-patch+json"


async def with_all(kube: Kubernetes, count: int, work: Callable[[Kubernetes, int], Awaitable[object]]) -> None:
    """Do something with each node, some at once."""
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(work(kube, number) for number in range(start, min(start + AT_ONCE, count))))


def name_of(number: int) -> str:
    return f"{MARK}-{number}"


async def add(kube: Kubernetes, number: int) -> None:
    name = name_of(number)
    await kube.ensure(NODES, _node(name), labels={MARK: "true"})
    await kube._json("PATCH", NODES.path(None, name, "status"), body=_status(), content_type=_MERGE)


async def remove(kube: Kubernetes, number: int) -> None:
    await kube.delete(NODES, name_of(number))


def _node(name: str) -> Object:
    labels = {
        MARK: "true", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.count": "8",
        "nvidia.com/gpu.memory": "81559", "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "a",
    }  # fmt: skip
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": []}}


def _status() -> Object:
    room = {"cpu": "96", "memory": "1056461Mi", "pods": "110", "nvidia.com/gpu": "8", "ephemeral-storage": "1Ti"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played",
             "lastHeartbeatTime": _now(), "lastTransitionTime": _now()}  # fmt: skip
    addresses = [{"type": "InternalIP", "address": "192.0.2.1"}]
    return {"status": {"capacity": room, "allocatable": room, "conditions": [ready], "addresses": addresses}}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class _Pod:
    namespace: str
    name: str
    uid: str
    phase: str
    leaving: bool
    container: str
    image: str
    waits: bool


class Kubelets:
    """Of all played nodes together."""

    def __init__(self, kube: Kubernetes, count: int, address: str) -> None:
        self._kube, self._count, self._address = kube, count, address
        self._todo: asyncio.Queue[_Pod] = asyncio.Queue()
        self._mirror: Mirror[_Pod] = Mirror(kube, PODS, self._keep, changed=self._changed)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.follow())
            group.create_task(self._renew())
            for _ in range(AT_ONCE):
                group.create_task(self._work())

    def _keep(self, pod: Object) -> _Pod | None:
        if not pod["spec"].get("nodeName", "").startswith(MARK):
            return None
        metadata, container = pod["metadata"], pod["spec"]["containers"][0]
        return _Pod(
            metadata["namespace"], metadata["name"], metadata["uid"], pod["status"]["phase"],
            "deletionTimestamp" in metadata, container["name"], container["image"], "mute" in container.get("args", ()),
        )  # fmt: skip

    def _changed(self, _before: _Pod | None, after: _Pod | None) -> None:
        for pod in [after] if after is not None else list(self._mirror.objects.values()) if _before is None else []:
            if pod.leaving or (pod.phase == "Pending" and not pod.waits):
                self._todo.put_nowait(pod)

    async def _work(self) -> None:
        while True:
            pod = await self._todo.get()
            try:
                if pod.leaving:
                    await self._kube.delete(PODS, pod.name, pod.namespace, uid=pod.uid, grace=0)
                else:
                    path = PODS.path(pod.namespace, pod.name, "status")
                    await self._kube._json("PATCH", path, body=self._running(pod), content_type=_MERGE)
            except NotFound:
                pass

    def _running(self, pod: _Pod) -> Object:
        now = _now()
        conditions = [
            {"type": one, "status": "True", "lastTransitionTime": now}
            for one in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
        ]
        container = {
            "name": pod.container, "image": pod.image, "imageID": pod.image, "containerID": f"played://{pod.uid}",
            "ready": True, "started": True, "restartCount": 0, "state": {"running": {"startedAt": now}},
        }  # fmt: skip
        return {
            "status": {
                "phase": "Running", "startTime": now, "podIP": self._address, "podIPs": [{"ip": self._address}],
                "hostIP": "192.0.2.1", "conditions": conditions, "containerStatuses": [container],
            }
        }  # fmt: skip

    async def _renew(self) -> None:
        while True:
            begin = asyncio.get_running_loop().time()
            await with_all(self._kube, self._count, self._renew_one)
            await asyncio.sleep(max(0, begin + RENEWAL_SECONDS - asyncio.get_running_loop().time()))

    async def _renew_one(self, kube: Kubernetes, number: int) -> None:
        name, renewed = name_of(number), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed}
        try:
            await kube.patch(LEASES, name, {"spec": spec}, LEASE_NAMESPACE)
        except NotFound:
            await kube.ensure(LEASES, {"metadata": {"name": name}, "spec": spec}, LEASE_NAMESPACE, labels={})


async def _answer(_request: web.Request) -> web.Response:
    return web.json_response({"version": "played"}, headers={"X-JupyterHub-Version": "6.1.0"})


async def _play(kubeconfig: str, count: int, address: str) -> None:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, PORT).start()
    kube = await Kubernetes.connect(kubernetes.aio, kubeconfig=kubeconfig)
    await Kubelets(kube, count, address).run()


def _process(kubeconfig: str, count: int, address: str) -> None:
    asyncio.run(_play(kubeconfig, count, address))


@contextmanager
def played_nodes(kubeconfig: str, count: int, address: str) -> Iterator[None]:
    """So many nodes that live while this is open. `address` is where the server for all pods listens."""
    apart(_with_nodes(kubeconfig, count, add))
    process = multiprocessing.get_context("spawn").Process(
        target=_process, args=(kubeconfig, count, address), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        apart(_with_nodes(kubeconfig, count, remove))


async def _with_nodes(kubeconfig: str, count: int, work: Callable[[Kubernetes, int], Awaitable[object]]) -> None:
    kube = await Kubernetes.connect(kubernetes.aio, kubeconfig=kubeconfig)
    try:
        await with_all(kube, count, work)
    finally:
        await kube.close()
