"""A Kubernetes cluster as a place where runs live: what it has, what runs there, and how one is ended for certain.

Everything that belongs to a run wears this hub's label, the allocation's number and the attempt that it is; nothing
without this hub's label is ever touched."""

import asyncio
import contextlib
import hashlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import ModuleType
from typing import Any, Final

from ..errors import Conflict, Invalid, NotFound, Unavailable
from ..observed import Host, Part, Run
from . import nodes, pods
from .kubernetes import (
    CONFIG_MAPS,
    EVENTS,
    INGRESSES,
    NODES,
    PODS,
    RESOURCE_SLICES,
    SERVICES,
    VOLUME_CLAIMS,
    Kind,
    Kubernetes,
    Mirror,
    Object,
)
from .nodes import ALLOCATION_LABEL, ATTEMPT_LABEL, HUB_LABEL, PREFIX, VOLUME_LABEL
from .pools import Binding, Pool, of

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 30.0
"""How long a removed pod may take to go after its grace, before it is left to the next look."""
LOOK_SECONDS: Final = 0.5
PARTS: Final = (SERVICES, INGRESSES, CONFIG_MAPS)
"""What a run may have beside its pod. The pod owns them, so the cluster itself removes what is left behind; here they
are removed before the run's ports are given to others."""
FIRST_LIST_SECONDS: Final = 30.0
KEYS_FILE: Final = "authorized_keys"
KEYS_SUFFIX: Final = "-ssh"
"""Behind the pod's name, the name of the ConfigMap with its keys."""
KEYS_ANNOTATION: Final = PREFIX + "ssh-keys"


def labels_of(hub_id: str, allocation_id: int) -> dict[str, str]:
    """By what everything of a run is found."""
    return {HUB_LABEL: hub_id, ALLOCATION_LABEL: str(allocation_id)}


def worn_by(hub_id: str, allocation_id: int, attempt: str) -> dict[str, str]:
    """What every object of a run wears, and no object of another one: a database that was restored from a backup gives
    numbers again that pods of its later life still wear, but never an attempt."""
    return {**labels_of(hub_id, allocation_id), ATTEMPT_LABEL: attempt}


def name_end(hub_id: str, allocation_id: int) -> str:
    """With what a run's pod's name ends; no other pod's does."""
    return f"-{allocation_id}-{hub_id[:8]}"


def selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def newest(of_runs: Iterable[Object]) -> list[Object]:
    """The pods without those whose number another one wears that was made later: that one is the run which the database
    means, and an older one had the number before a backup was restored."""
    by_age = sorted(of_runs, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""))
    kept = {pod["metadata"]["labels"][ALLOCATION_LABEL]: pod for pod in by_age}
    return sorted(kept.values(), key=lambda pod: str(pod["metadata"]["name"]))


async def end(kubernetes: Kubernetes, namespace: str, hub_id: str, allocation_id: int, *, grace_seconds: int) -> bool:
    """Remove all that belongs to a run. True only when no pod of it is left, not even one that is going.

    `grace_seconds` is what its processes get between being asked to end and being killed.

    Raises: Unavailable when the cluster cannot be asked.
    """
    wanted = selector(labels_of(hub_id, allocation_id))
    until = asyncio.get_running_loop().time() + grace_seconds + STOP_SECONDS
    while True:
        left = (await kubernetes.list(PODS, namespace, labels=wanted)).items
        for pod in left:
            await _end_pod(kubernetes, pod, grace_seconds)
        if not left:
            break
        if asyncio.get_running_loop().time() > until:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    for kind in PARTS:
        for part in (await kubernetes.list(kind, namespace, labels=wanted)).items:
            metadata = part["metadata"]
            await kubernetes.delete(kind, metadata["name"], namespace, uid=metadata["uid"])
    return True


async def why_gone(kubernetes: Kubernetes, events: Sequence[Object], *, host: str) -> pods.Trouble:
    """Why a run has no pod any more: by what was said of the pod, oldest first, else by the host that it was on.

    Raises: Unavailable.
    """
    try:
        ready = not host or nodes.is_ready(await kubernetes.get(NODES, host))
    except NotFound:
        ready = False
    return pods.why_gone(events, host_ready=ready)


async def _end_pod(kubernetes: Kubernetes, pod: Object, grace_seconds: int) -> None:
    """Ask for its end; of a pod whose node does not answer, remove the entry: nobody else will."""
    metadata = pod["metadata"]
    given = {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
    if not metadata.get("deletionTimestamp"):
        await kubernetes.delete(PODS, **given, grace=grace_seconds)
    elif await _is_lost(kubernetes, pod):
        log.warning("pod %s: its node is gone or silent, so its entry is removed", metadata["name"])
        await kubernetes.delete(PODS, **given, grace=0)


async def _is_lost(kubernetes: Kubernetes, pod: Object) -> bool:
    """Whether the pod should be gone for a minute and its node cannot say that it is."""
    due = pods.moment(pod["metadata"]["deletionTimestamp"])
    name = pod["spec"].get("nodeName")
    if due is None or not name:
        return False
    try:
        node = await kubernetes.get(NODES, name)
    except NotFound:
        return True
    return not nodes.is_ready(node) and (datetime.now(due.tzinfo) - due).total_seconds() > 60


@dataclass(frozen=True)
class _Pod:
    """What is remembered of a pod on some node."""

    node: str
    facts: Object
    """The pod, without what nobody here reads."""
    over: bool


class Cluster:
    """The hosts and runs of one hub on a cluster; nodes and pods are watched while it is open."""

    def __init__(
        self,
        library: ModuleType,
        *,
        hub_id: str,
        namespace: str,
        pools: Sequence[Pool],
        grace_seconds: int = 1,
        kubeconfig: str | None = None,
    ) -> None:
        self._library, self._kubeconfig = library, kubeconfig
        self._hub_id, self._namespace, self._pools = hub_id, namespace, pools
        self._grace_seconds = grace_seconds
        self._kubernetes: Kubernetes | None = None
        self._opening = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.hosts_changed = asyncio.Event()
        """Set when what the hosts have or lack changed."""
        self.runs_changed = asyncio.Event()
        """Set when a pod of this hub ended or is gone."""

    async def _open(self) -> tuple[Kubernetes, Mirror[Object], Mirror[_Pod]]:
        """Connect and begin to watch, once."""
        async with self._opening:
            if self._kubernetes is None:
                kubernetes = await Kubernetes.connect(self._library, kubeconfig=self._kubeconfig)
                self._nodes: Mirror[Object] = Mirror(kubernetes, NODES, _kept_node, changed=self._node_changed)
                self._pods: Mirror[_Pod] = Mirror(kubernetes, PODS, _kept_pod, changed=self._pod_changed)
                self._tasks = [asyncio.ensure_future(self._nodes.follow()), asyncio.ensure_future(self._pods.follow())]
                self._kubernetes = kubernetes
        return self._kubernetes, self._nodes, self._pods

    def _node_changed(self, _before: Object | None, _after: Object | None) -> None:
        self.hosts_changed.set()

    def _pod_changed(self, before: _Pod | None, after: _Pod | None) -> None:
        pod = after or before
        if pod is None or nodes.is_others(pod.facts, self._hub_id):
            self.hosts_changed.set()
        if pod is None or (not nodes.is_others(pod.facts, self._hub_id) and (after is None or after.over)):
            self.runs_changed.set()

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._kubernetes is not None:
            await self._kubernetes.close()
            self._kubernetes = None

    pool = None
    """It lists every host of the hub."""

    async def why_gone(self, allocation_id: int, *, host: str) -> tuple[str, str]:
        """Somebody outside deleted its pod, or the cluster did: Kubernetes before 1.26 says so in events alone, some of
        which name the pod and not its uid; and a node whose object is deleted takes its pods with it.

        Raises: Unavailable.
        """
        kubernetes, *_ = await self._open()
        end = name_end(self._hub_id, allocation_id)
        events: list[Object] = []
        for reason in pods.TAKEN_AWAY:
            told = await kubernetes.list(EVENTS, self._namespace, fields=f"involvedObject.kind=Pod,reason={reason}")
            events += [one for one in told.items if one["involvedObject"].get("name", "").endswith(end)]
        found = await why_gone(kubernetes, sorted(events, key=pods.told_at), host=host)
        return found.reason, found.text.format(said=found.said)

    async def hosts(self) -> list[Host]:
        """All nodes of the pools. Raises: Unavailable before the first list, so that nothing is taken for gone, and
        when the server was not heard for long, so that nothing is taken for seen."""
        kubernetes, all_nodes, all_pods = await self._open()
        try:
            async with asyncio.timeout(FIRST_LIST_SECONDS):
                await all_nodes.ready.wait()
                await all_pods.ready.wait()
        except TimeoutError:
            raise Unavailable("The cluster's nodes could not be listed yet.") from None
        if all_nodes.stale or all_pods.stale:
            raise Unavailable("The cluster tells no news of its nodes any more.")
        slices = await self._slices(kubernetes) if any(pool.binding == Binding.DRA for pool in self._pools) else {}
        by_node: dict[str, list[Object]] = defaultdict(list)
        for pod in all_pods.objects.values():
            by_node[pod.node].append(pod.facts)
        hosts = []
        for node in all_nodes.objects.values():
            name, labels = node["metadata"]["name"], node["metadata"]["labels"]
            pool = of(self._pools, labels)
            if pool is not None:
                hosts.append(self._host(node, by_node[name], pool, slices.get(name, ())))
        return hosts

    def _host(self, node: Object, on_it: Sequence[Object], pool: Pool, slices: Sequence[Object]) -> Host:
        """One node that says what nobody understands is out of work by itself, and takes no other with it."""
        try:
            return nodes.observe(node, on_it, pool=pool, hub_id=self._hub_id, slices=slices)
        except Exception as error:
            name = node["metadata"]["name"]
            log.exception("node %s is not understood, and takes nothing new", name)
            return Host(
                name, pool.name, 0, 0, simulated=pool.simulated, online=False, address="",
                labels={nodes.WHY: f"not understood: {str(error) or repr(error)}"},
            )  # fmt: skip

    async def _slices(self, kubernetes: Kubernetes) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = defaultdict(list)
        try:
            listing = await kubernetes.list(RESOURCE_SLICES)
        except NotFound as error:
            raise Unavailable("A pool with the binding dra needs Kubernetes 1.34 or newer.") from error
        for one in listing.items:
            found[one["spec"].get("nodeName", "")].append(one)
        return found

    async def runs(self) -> list[Run]:
        """Every pod of this hub, as the server has it now, not as the watch last heard.

        Raises: Unavailable when the cluster cannot be asked: then nothing is known to have ended.
        """
        kubernetes, *_ = await self._open()
        listed = await kubernetes.list(PODS, self._namespace, labels=f"{HUB_LABEL}={self._hub_id},{ALLOCATION_LABEL}")
        ready = {node["metadata"]["name"]: nodes.is_ready(node) for node in (await kubernetes.list(NODES)).items}
        found = []
        for pod in newest(listed.items):
            if _number(pod["metadata"]["labels"][ALLOCATION_LABEL]) is None:
                log.warning("pods/%s is unknown to the database, and is left alone", pod["metadata"]["name"])
                continue
            node = pod["spec"].get("nodeName", "")
            run = pods.run_of(pod, node_ready=ready.get(node, False))
            if run.over and run.reason == pods.DELETED.reason:
                reason, message = await self.why_gone(run.allocation_id, host=node)
                run = replace(run, reason=reason, message=message)
            found.append(run)
        return found

    async def stop(self, allocation_id: int) -> bool:
        """End a run. Raises: Unavailable."""
        kubernetes, *_ = await self._open()
        return await end(kubernetes, self._namespace, self._hub_id, allocation_id, grace_seconds=self._grace_seconds)

    async def write_keys(self, keys: Mapping[int, str]) -> None:
        """Bring the `authorized_keys` of runs up to date, by allocation. A change of its pod makes the kubelet look at
        once instead of a minute later. Raises: Unavailable."""
        kubernetes, *_ = await self._open()
        ours = f"{HUB_LABEL}={self._hub_id},{ALLOCATION_LABEL}"
        for there in (await kubernetes.list(CONFIG_MAPS, self._namespace, labels=ours)).items:
            name, data = there["metadata"]["name"], there.get("data") or {}
            wanted = keys.get(_number(there["metadata"]["labels"][ALLOCATION_LABEL]) or 0)
            if KEYS_FILE not in data or wanted is None or data[KEYS_FILE] == wanted:
                continue
            seen = {"metadata": {"annotations": {KEYS_ANNOTATION: hashlib.sha256(wanted.encode()).hexdigest()}}}
            with contextlib.suppress(NotFound):  # it is ending
                await kubernetes.patch(CONFIG_MAPS, name, {"data": {KEYS_FILE: wanted}}, self._namespace)
                await kubernetes.patch(PODS, name.removesuffix(KEYS_SUFFIX), seen, self._namespace)

    async def output(
        self, allocation_id: int, *, tail: int, follow: bool, since: datetime | None = None
    ) -> AsyncIterator[str]:
        """The last lines that the server's container printed, then each one as it comes. The kubelet knows when.

        Raises: NotFound once the pod is gone, Conflict while it has not begun, Unavailable.
        """
        kubernetes, *_ = await self._open()
        ours = selector(labels_of(self._hub_id, allocation_id))
        found = (await kubernetes.list(PODS, self._namespace, labels=ours)).items
        if not found:
            raise NotFound("What it printed")
        name = newest(found)[0]["metadata"]["name"]
        try:
            printed = kubernetes.logs(
                name, self._namespace, container=pods.CONTAINER, tail=tail, follow=follow, since=since
            )
            async for line in printed:
                yield line
        except Invalid as error:
            raise Conflict("It has printed nothing yet: it is still starting.") from error

    async def tidy(self, *, running: Collection[int]) -> None:
        """Nothing: what a pod printed goes with it."""

    async def parts(self) -> list[Part]:
        """One list of each kind. Raises: Unavailable."""
        kubernetes, *_ = await self._open()

        async def listed(kind: Kind, label: str, field: str) -> list[Part]:
            ours = f"{HUB_LABEL}={self._hub_id},{label}"
            return [
                Part(f"{kind.plural}/{one['metadata']['name']}", **{field: _number(one["metadata"]["labels"][label])})
                for one in (await kubernetes.list(kind, self._namespace, labels=ours)).items
            ]

        of_runs = [listed(kind, ALLOCATION_LABEL, "allocation_id") for kind in PARTS]
        found = await asyncio.gather(*of_runs, listed(VOLUME_CLAIMS, VOLUME_LABEL, "volume_id"))
        return [part for parts in found for part in parts]

    async def remove_volumes(self, volume_ids: Collection[int]) -> None:
        """Remove the claims of volumes that were given up. Raises: Unavailable."""
        kubernetes, *_ = await self._open()
        ours = f"{HUB_LABEL}={self._hub_id},{VOLUME_LABEL}"
        for claim in (await kubernetes.list(VOLUME_CLAIMS, self._namespace, labels=ours)).items:
            metadata = claim["metadata"]
            if _number(metadata["labels"][VOLUME_LABEL]) in volume_ids:
                await kubernetes.delete(VOLUME_CLAIMS, metadata["name"], self._namespace, uid=metadata["uid"])


def _number(text: str) -> int | None:
    """Of a label that anybody may have written: None for what no database ever gave."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def _kept_node(node: Object) -> Object:
    """Leave out what changes with every heartbeat and what nobody reads."""
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node["status"]
    wanted = (nodes.GPUS_ANNOTATION, "hami.io/node-nvidia-register")
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key in wanted}
    return {
        "metadata": {
            "name": metadata["name"], "labels": metadata.get("labels") or {}, "annotations": annotations,
        },
        "spec": {"unschedulable": spec.get("unschedulable", False), "taints": spec.get("taints") or []},
        "status": {
            "capacity": status.get("capacity") or {},
            "allocatable": status.get("allocatable") or {},
            "addresses": status.get("addresses") or [],
            "conditions": [
                {"type": "Ready", "status": one["status"]}
                for one in status.get("conditions") or ()
                if one["type"] == "Ready"
            ],
        },
    }  # fmt: skip


def _kept_pod(pod: Object) -> _Pod | None:
    """What a pod holds of its node; None for one that holds nothing."""
    node = pod["spec"].get("nodeName")
    if not node:
        return None
    metadata = pod["metadata"]
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key == HUB_LABEL}
    annotations = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if key.startswith("hami.io/vgpu-dev")
    }

    def held(container: Object) -> Object:
        kept = {"name": container["name"], "resources": container.get("resources") or {}}
        return {**kept, **({"restartPolicy": "Always"} if container.get("restartPolicy") == "Always" else {})}

    spec: dict[str, Any] = {"containers": [held(one) for one in pod["spec"]["containers"]]}
    if pod["spec"].get("initContainers"):
        spec["initContainers"] = [held(one) for one in pod["spec"]["initContainers"]]
    if pod["spec"].get("overhead"):
        spec["overhead"] = pod["spec"]["overhead"]
    phase = (pod.get("status") or {}).get("phase")
    facts = {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec, "status": {"phase": phase}}
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    ended = any("terminated" in (one.get("state") or {}) for one in containers)
    return _Pod(node, facts, over=ended or nodes.is_over(pod))
