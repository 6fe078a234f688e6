"""Environments as pods of a Kubernetes cluster: our mixin on KubeSpawner. What the pod is, `pod` says; what its status
means, `clients.pods`."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any, ClassVar

import aiohttp
import kubernetes_asyncio
from kubernetes_asyncio.client import ApiException
from kubespawner import KubeSpawner
from traitlets import Float, Unicode

from .. import words
from ..clients import cluster, pods
from ..clients.kubernetes import (
    CLAIM_TEMPLATES,
    CONFIG_MAPS,
    INGRESSES,
    PODS,
    SERVICES,
    VOLUME_CLAIMS,
    Kubernetes,
)
from ..clients.nodes import HUB_LABEL, quantity
from ..clients.pods import Trouble
from ..clients.pools import Binding, Pool
from ..errors import Abandoned, Conflict, Denied, Invalid, NotFound, RemoteGPUError, StartFailed, Unavailable
from ..orm import EndReason, VolumeKind
from ..runtime import utcnow
from ..units import show_bytes
from . import pod as builder
from . import ssh
from .spawner import Held, HeldVolume, RemoteGPUMixin, Run

LOOK_SECONDS = 0.3
EVENTS_SECONDS = 1.0
LOOKS_BEFORE_ASKING = 10
"""How often a stop looks at what the watch tells, before it asks the cluster itself."""
WATCHED_SECONDS = 5.0
"""How often a start makes sure that there is a watch to look at."""
_AWAY = (ApiException, aiohttp.ClientError, OSError, TimeoutError, Unavailable)
"""What the cluster's absence raises, in KubeSpawner's code and in ours."""

_STAYS = {
    VolumeKind.HOME: "Your home stays at {size}: the cluster does not let it grow to {wanted}.",
    VolumeKind.SHARED: "What the workspace shares stays at {size}: the cluster does not let it grow to {wanted}.",
}


class RemoteGPUKubeSpawner(RemoteGPUMixin, KubeSpawner):  # type: ignore[misc]
    """Starts each environment as a pod on the host that admission chose, with the GPUs that it holds."""

    home_mount = Unicode(
        "/home/jovyan", help="Where the home volume is seen. Default: jupyter's own images' home."
    ).tag(config=True)
    trouble_seconds = Float(
        30.0,
        help="""How long trouble that may pass is waited out before a start is given up: no place on its host, where a
        pod that ended a moment ago may still be counted, or a registry that does not answer. Default 30.""",
    ).tag(config=True)

    enforced = True
    _events: ClassVar[tuple[float, Any, dict[str, list[dict[str, Any]]]]] = (0.0, None, {})
    """When all events were last looked at, in which reflector, and what there was by pod."""
    _kubernetes: ClassVar[Kubernetes | None] = None
    _beginning: ClassVar[dict[Any, asyncio.Task[Any]]] = {}
    """Watches whose first list is on its way, by KubeSpawner's key."""
    _held: Held | None = None
    _shown = False
    """The pod of this start was seen by the watch."""
    _trouble: tuple[str, float] | None = None
    """Reason, and the loop's time when it was first seen."""
    _told: int = 0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._configured_cmd: list[str] = list(getattr(self, "cmd", None) or [])

    @property
    def cluster(self) -> Kubernetes:
        """One client for all spawners of the hub, configured as KubeSpawner's own."""
        if RemoteGPUKubeSpawner._kubernetes is None:
            RemoteGPUKubeSpawner._kubernetes = Kubernetes(kubernetes_asyncio)
        return RemoteGPUKubeSpawner._kubernetes

    @property
    def _hub_id(self) -> str:
        return self.runtime.settings.hub_id

    def _pool(self, held: Held) -> Pool:
        for pool in self.runtime.pools:
            if pool.name == held.pool:
                return pool
        raise NotFound(f"The pool {held.pool}")

    # the start

    def knows(self, image: str) -> bool:
        """A local image is a command of this machine."""
        return not image.startswith("local:")

    async def busy_ports(self) -> frozenset[int]:
        """Node ports are the whole cluster's: those of other people's services too."""
        if not self.runtime.rules.port_ranges:
            return frozenset()
        others = [
            one["spec"]
            for one in (await self.cluster.list(SERVICES)).items
            if (one["metadata"].get("labels") or {}).get(HUB_LABEL) != self._hub_id
        ]
        ports = {port.get("nodePort") for spec in others for port in spec.get("ports") or ()}
        return frozenset(filter(None, ports | {spec.get("healthCheckNodePort") for spec in others}))

    async def prepare(self, held: Held) -> None:
        image = self.runtime.settings.images.get(held.image, {})
        self._held, self._shown, self._trouble, self._told = held, False, None, 0
        self.pod_name = builder.name_of(held, self._hub_id)
        self.dns_name = self.dns_name_template.format(namespace=self.namespace, name=self.pod_name)
        self.image = builder.pinned(held.image, held.image_digest)
        self.cmd = [*image.get("cmd", self._configured_cmd), *image.get("args", [])]
        for volume in held.volumes:
            await self._ensure_claim(volume, held)
        if ssh.asked_for(held):
            files = ssh.config_map(held, pod_name=self.pod_name, hub_id=self._hub_id)
            await self.cluster.ensure(CONFIG_MAPS, files, self.namespace, labels=self._labels(held))

    async def _ensure_claim(self, volume: HeldVolume, held: Held) -> None:
        """Make the volume's claim, or let it grow. One that the cluster does not let grow stays as it is, and the
        start goes on. Raises: Conflict when another volume has its name."""
        shared = volume.kind == VolumeKind.SHARED and self.runtime.settings.shared_storage_class
        wanted = builder.claim(
            volume, held=held, hub_id=self._hub_id, storage_class=shared or self.storage_class,
            home_modes=self.storage_access_modes,
        )  # fmt: skip
        try:  # it is there but for the first time
            there = await self.cluster.get(VOLUME_CLAIMS, wanted["metadata"]["name"], self.namespace)
        except NotFound:
            there = await self.cluster.ensure(VOLUME_CLAIMS, wanted, self.namespace, labels={HUB_LABEL: self._hub_id})
        if not builder.is_of(there, volume):
            raise Conflict(
                "The cluster has a volume {name} that this hub's database does not know, as after a backup was "
                "restored. Ask an admin of the hub to run `remotegpu doctor`.",
                name=wanted["metadata"]["name"],
            )
        size = there["spec"]["resources"]["requests"]["storage"]
        if quantity(size) < volume.size_bytes:
            try:
                await self.cluster.patch(
                    VOLUME_CLAIMS, wanted["metadata"]["name"],
                    {"spec": {"resources": {"requests": {"storage": str(volume.size_bytes)}}}}, self.namespace,
                )  # fmt: skip
            except (Conflict, Denied, Invalid) as error:
                self.log.warning("%s: the volume %s keeps its size: %s", self._log_name, volume.id, error)
                self._tell(words.translate(
                    self._language(), _STAYS[VolumeKind(volume.kind)], size=show_bytes(int(quantity(size))),
                    wanted=show_bytes(volume.size_bytes),
                ))  # fmt: skip

    def _labels(self, held: Held) -> dict[str, str]:
        return builder.worn_by(held, self._hub_id)

    def get_env(self) -> dict[str, Any]:
        env: dict[str, Any] = super().get_env()
        if self._held is not None:
            image = self.runtime.settings.images.get(self._held.image, {})
            env.update({str(name): str(value) for name, value in image.get("env", {}).items()})
        return env

    async def load_user_options(self) -> None:
        """Nothing: there are no profiles, and the choice is parsed by `start`."""

    async def _start(self) -> Any:
        """KubeSpawner's start looks at the watch until the pod runs: see to it that there is one all the time."""
        seeing = asyncio.ensure_future(self._keep_watching())
        try:
            return await super()._start()
        finally:
            seeing.cancel()

    async def _keep_watching(self) -> None:
        while True:
            await asyncio.sleep(WATCHED_SECONDS)
            with contextlib.suppress(Unavailable):
                await self._start_watching_pods()
                if self.events_enabled:
                    await self._start_watching_events()

    async def _make_create_pod_request(self, pod: Any, request_timeout: float) -> bool:
        """KubeSpawner calls this with its pod when every hook of the operator's has seen it. Its own way of making it
        would, where the name is taken, remove whatever has it."""
        held = self._held
        if held is None:
            raise AssertionError
        manifest = builder.complete(
            self.api.api_client.sanitize_for_serialization(pod),
            held=held, pool=self._pool(held), hub_id=self._hub_id, home=self.home_mount,
        )  # fmt: skip
        made = await self.cluster.ensure(PODS, manifest, self.namespace, labels=self._labels(held))
        if self._run is None or self._run.given_up or self._run.held is not held:
            await self.cluster.delete(PODS, made["metadata"]["name"], self.namespace, uid=made["metadata"]["uid"])
            raise Abandoned("This start was given up before it began. Start again.")
        if held.gpus and self._pool(held).binding == Binding.DRA:  # the pod waits for it, and takes it along
            template = builder.claim_template(made, held=held, hub_id=self._hub_id)
            await self.cluster.ensure(CLAIM_TEMPLATES, template, self.namespace, labels=self._labels(held))
        service = builder.service(made, held=held, hub_id=self._hub_id)
        if service is not None:
            await self.cluster.ensure(SERVICES, service, self.namespace, labels=self._labels(held))
        web = builder.ingress(made, held=held, hub_id=self._hub_id, settings=self.runtime.settings.ingress)
        if web is not None:
            for kind, part in zip((SERVICES, INGRESSES), web, strict=True):
                await self.cluster.ensure(kind, part, self.namespace, labels=self._labels(held))
        return True

    def is_pod_running(self, pod: Any) -> bool | Coroutine[Any, Any, bool]:
        """KubeSpawner asks this until it is so, and awaits what has to be awaited; what cannot become so ends the start
        at once, with the reason.

        Raises: StartFailed.
        """
        there = pod is not None and bool((pod.get("status") or {}).get("podIP"))
        if self._start_future is None or self._start_future.done():
            return there and bool(super().is_pod_running(pod))
        self._tell_events()
        if pod is None:
            return self._comes_back() if self._shown else False
        self._shown = True
        found = pods.trouble(pod) or (None if there else pods.of_volumes(self.events))
        if found == pods.DELETED:
            return self._was_deleted()
        if found is not None:
            self._judge(found)
            return False
        self._trouble = None
        return there and bool(super().is_pod_running(pod))

    async def _comes_back(self) -> bool:
        """Never yet; but a pod that the watch has lost may be there all the same. Raises: StartFailed."""
        with contextlib.suppress(Unavailable):
            if not await self._exists():
                return await self._was_deleted()
        return False

    async def _was_deleted(self) -> bool:
        """Nor ever. Raises: StartFailed."""
        with contextlib.suppress(Unavailable):
            self._judge(await self._why_gone(self._run))
        return False

    def _judge(self, found: Trouble) -> None:
        """Give up what waiting does not help, or did not. Raises: StartFailed."""
        now = asyncio.get_running_loop().time()
        if self._trouble is None or self._trouble[0] != found.reason:
            self._trouble = found.reason, now
        lasted = now - self._trouble[1] > self.trouble_seconds
        if found.final or (lasted and found.said and not found.patient):
            reason = "failed" if found.reason == "exited" else found.reason
            raise StartFailed(reason, found.text, said=found.said)
        line = words.translate(self._language(), found.text, said=found.said)
        if line not in self._messages:
            self._tell(line)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What Kubernetes says of the pod since this start began, oldest first.

        KubeSpawner sorts everybody's events each time it is asked for one pod's, and a start asks many times: beside
        2,000 pods that took a third of the hub's loop. Here all spawners share one look a second.
        """
        reflector = self.event_reflector
        if not reflector:
            return []
        now = asyncio.get_running_loop().time()
        at, looked_in, found = RemoteGPUKubeSpawner._events
        if looked_in is not reflector or now - at > EVENTS_SECONDS:
            found = defaultdict(list)
            for event in reflector.resources.values():
                found[event["involvedObject"].get("name", "")].append(event)
            RemoteGPUKubeSpawner._events = now, reflector, found
        own = sorted(found.get(self.pod_name, ()), key=pods.told_at)
        marks = [number for number, event in enumerate(own) if event["metadata"]["uid"] == self._last_event]
        return own[marks[-1] + 1 :] if marks else own

    def _tell_events(self) -> None:
        """Pass on what Kubernetes says of the pod, in its own words."""
        events = self.events
        for event in events[self._told :]:
            said = (event.get("reason") or "", event.get("message") or "")
            self._tell(": ".join(filter(None, said)))
        self._told = len(events)

    async def mark(self) -> str:
        return str(self.pod_id)

    # while it runs, and the end

    async def _start_reflector(
        self, kind: str, reflector_class: type[Any], replace: bool = False, **given: Any
    ) -> Any:  # fmt: skip
        """Give the watch that all spawners share, beginning it where there is none that follows.

        KubeSpawner's own way keeps one whose first list failed, or that gave up after a minute without the cluster: it
        shows no pods, and the hub took them for ended. Here a new one takes its place once it has listed everything;
        until then whoever asks is told that nothing is known.

        Raises: Unavailable.
        """
        key = self._get_reflector_key(kind)
        there = self.reflectors.get(key)
        if there is not None and not replace and there.watch_task is not None and not there.watch_task.done():
            return there
        if key not in self._beginning:
            fresh = reflector_class(parent=self, namespace=self.namespace, **given)
            self._beginning[key] = asyncio.ensure_future(self._begin_watch(key, fresh))
            self._beginning[key].add_done_callback(lambda _: self._beginning.pop(key))
        return await asyncio.shield(self._beginning[key])

    async def _begin_watch(self, key: Any, fresh: Any) -> Any:
        try:
            await fresh.start()
        except Exception as error:
            said = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error) or repr(error)
            raise Unavailable("The cluster cannot be reached: {reason}.", reason=said) from error
        older, self.reflectors[key] = self.reflectors.get(key), fresh
        if older is not None:
            await older.stop()
        return fresh

    async def poll(self) -> int | None:
        """A cluster that cannot be asked has not ended anything: then the environment counts as it did before."""
        run = self._run
        before = run.alive_at if run is not None else None
        try:
            await self._start_watching_pods()  # a list that is still on its way ends nothing
            if self.event_reflector is not None:
                with contextlib.suppress(Unavailable):  # they only tell more
                    await self._start_watching_events()
            if self._watched() is None and await self._exists():
                return None
            await self._note_end(run)
            status: int | None = await super().poll()
        except _AWAY as error:
            if run is None:
                raise
            self.log.warning("%s: the cluster cannot be asked (%s)", self._log_name, error)
            return None
        except Exception:  # the hub would take it for the end of the environment, and stop it
            if run is None:
                raise
            self.log.exception("%s: it is not known whether it runs", self._log_name)
            return None
        finally:
            if run is not None:  # what the watch remembers may be old: what is billed, the reconciler saw
                run.alive_at = before
        return status

    def _watched(self) -> Any:
        """The pod as the watch last heard of it; None when it has not, or no more."""
        return self.pod_reflector.pods.get(f"{self.namespace}/{self.pod_name}")

    async def _note_end(self, run: Run | None) -> None:
        """Keep why and when, before KubeSpawner removes the pod that tells it. Raises: Unavailable."""
        if run is None or run.reason is not None:
            return
        pod = self._watched()
        if pod is None:
            if run.active:
                await self._note_gone(run)
            return
        seen = pods.run_of(pod, node_ready=True)
        if not seen.over:
            return
        run.ended_at = seen.ended_at
        if seen.reason == pods.DELETED.reason:
            await self._note_gone(run)
        else:
            run.reason, run.message = EndReason(seen.reason or EndReason.EXITED), seen.message

    async def _note_gone(self, run: Run) -> None:
        found = await self._why_gone(run)
        if run.reason is None:  # nobody ended it meanwhile
            run.reason, run.message = EndReason(found.reason), found.text.format(said=found.said)

    async def _why_gone(self, run: Run | None) -> Trouble:
        RemoteGPUKubeSpawner._events = 0.0, None, {}  # the newest counts here
        return await cluster.why_gone(self.cluster, self.events, host=run.host if run is not None else "")

    async def stop(self, now: bool = False) -> None:
        """Remove the pod and wait until it is gone, as the watch tells or, should that be deaf, the cluster itself.

        Never at once, as KubeSpawner does for `now`: that takes the pod off the list while its processes may run on.
        Raises: TimeoutError, Unavailable.
        """
        self._note_stop()
        await self._start_watching_pods()
        key = f"{self.namespace}/{self.pod_name}"
        async with asyncio.timeout(self.start_timeout):
            if not await self._remove_pod(self.runtime.settings.stop_grace_seconds):
                self.pod_reflector.pods.pop(key, None)
            looks = 0
            while key in self.pod_reflector.pods:
                await asyncio.sleep(LOOK_SECONDS)
                looks += 1
                if looks % LOOKS_BEFORE_ASKING == 0 and not await self._exists():
                    self.pod_reflector.pods.pop(key, None)

    async def _exists(self) -> bool:
        try:
            await self.cluster.get(PODS, self.pod_name, self.namespace)
        except NotFound:
            return False
        return True

    async def _remove_pod(self, grace_seconds: int) -> bool:
        """Ask for its removal, noting until when it ran for certain; False where nothing of ours has the name."""
        run = self._run
        try:
            pod = await self.cluster.get(PODS, self.pod_name, self.namespace)
        except NotFound:
            return False
        if (pod["metadata"].get("labels") or {}).get(HUB_LABEL) != self._hub_id:
            return False
        if run is not None and run.ended_at is None and run.active:
            seen = pods.run_of(pod, node_ready=True)
            run.ended_at = seen.ended_at if seen.over else utcnow()
        return await self.cluster.delete(
            PODS, self.pod_name, self.namespace, uid=pod["metadata"]["uid"], grace=grace_seconds
        )

    async def clear(self, run: Run) -> bool:
        """Remove whatever of the run is left; True when the cluster says that no pod of it is."""
        try:
            return await cluster.end(
                self.cluster, self.namespace, self._hub_id, run.allocation_id,
                grace_seconds=self.runtime.settings.stop_grace_seconds,
            )  # fmt: skip
        except RemoteGPUError as error:
            self.log.warning("%s: %s", self._log_name, error)
            return False

    async def delete_forever(self) -> None:
        """Volumes are removed by whoever says so, never with a server."""
        await RemoteGPUMixin.delete_forever(self)
