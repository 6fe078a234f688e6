"""What a pod's status says of a run: whether it runs, since when not, and why, in words that help. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ..observed import Run
from .nodes import ALLOCATION_LABEL

Object = Mapping[str, Any]

CONTAINER: Final = "notebook"
"""What KubeSpawner calls the server's container."""
_PULLING: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
     "ImageInspectError", "SignatureValidationFailed"}
)  # fmt: skip
_FOR_GOOD: Final = ("not found", "unauthorized", "denied", "forbidden", "authorization failed", "no basic auth",
                    "manifest unknown", "couldn't parse", "invalid reference", "failed to authorize",
                    "name unknown")  # fmt: skip
"""In the registry's or runtime's own words: trying again will not help."""
_REFUSED_BY_HOST: Final = frozenset({"UnexpectedAdmissionError", "NodeAffinity", "NodeShutdown"})
_SHUT_DOWN: Final = frozenset({"Terminated", "Shutdown"})
"""What the kubelet says of pods that it ends because its machine goes down; before 1.22 it said `Shutdown` also of
those that it does not begin any more."""
TAKEN_AWAY: Final = ("Evicted", "Preempted", "TaintManagerEviction")
"""Events by which Kubernetes before 1.26 tells why it deleted a pod."""


@dataclass(frozen=True)
class Trouble:
    """Why a pod does not run, or what keeps it from running."""

    reason: str
    """One of `orm.EndReason`."""
    text: str
    """An English sentence with `{said}`, which `words` translates."""
    said: str = ""
    """What the cluster said of it."""
    final: bool = True
    """Waiting will not help."""
    patient: bool = False
    """It passes by itself: it is waited for as long as a start may take."""


DELETED: Final = Trouble("pod_deleted", "Its pod was deleted by somebody outside this hub.")
LOST: Final = Trouble("node_lost", "Its host does not answer any more.")


def _taken(said: str) -> Trouble:
    return Trouble("evicted", "The cluster took its place away: {said}", said)


def trouble(pod: Object) -> Trouble | None:
    """What is wrong with a pod; None when it runs, or is on its way without any trouble."""
    status = pod.get("status") or {}
    of_container = next(filter(None, map(_of_container, _statuses(status))), None)
    deletion = _of_its_deletion(pod, status)
    if deletion and of_container and of_container.reason in ("exited", "failed"):
        of_container = None  # it ended because the pod was deleted, not the other way round
    return _of_the_whole(pod, status) or of_container or deletion or _of_scheduling(status)


def _statuses(status: Object) -> list[Object]:
    """The server's container first."""
    own = sorted(status.get("containerStatuses") or (), key=lambda one: str(one["name"] != CONTAINER))
    return [*own, *(status.get("initContainerStatuses") or ())]


def _of_the_whole(pod: Object, status: Object) -> Trouble | None:
    reason, said = status.get("reason", ""), str(status.get("message", ""))
    if reason == "Evicted":
        return Trouble("evicted", "The host ran short and ended it: {said}", said)
    if reason == "NodeLost":
        return LOST
    if reason == "Preempting":
        return _taken(said)
    if reason in _SHUT_DOWN and "not admitting" not in said:
        return Trouble("evicted", "The host was shut down and ended it: {said}", said or reason)
    if status.get("phase") == "Failed" and (
        reason.startswith("OutOf") or reason in _REFUSED_BY_HOST or reason in _SHUT_DOWN
    ):
        return Trouble("unschedulable", "The host refused it: {said}", said or reason)
    return None


def _of_its_deletion(pod: Object, status: Object) -> Trouble | None:
    """Kubernetes tells that a pod is to make room before it deletes it, and fails one whose node is gone first."""
    deleted = bool(pod["metadata"].get("deletionTimestamp"))
    if not deleted and status.get("phase") != "Failed":
        return None
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            if condition.get("reason") == "DeletionByPodGC":
                return LOST
            return _taken(str(condition.get("message", "")))
    return DELETED if deleted else None


def told_at(event: Object) -> str:
    """When an event was last told: older and newer sources fill different fields, and some none."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def of_events(events: Iterable[Object]) -> Trouble | None:
    """Why the cluster deleted a pod, by what it said of it, oldest first; None where it did not say."""
    for event in reversed(list(events)):
        if event.get("reason") in TAKEN_AWAY:
            said = str(event.get("message") or "")
            return None if said.startswith("Cancelling") else _taken(said)
    return None


def of_volumes(events: Iterable[Object]) -> Trouble | None:
    """Whether a pod waits for a volume that is attached to another host, by what was said of it, oldest first.

    The controller says "used by pod(s)" where somebody runs there, else the other host is letting go of it.
    """
    for event in reversed(list(events)):
        said = str(event.get("message") or "")
        if event.get("reason") == "SuccessfulAttachVolume":
            return None
        if event.get("reason") in ("FailedAttachVolume", "FailedMount") and "Multi-Attach error" in said:
            if "used by" in said:
                text = (
                    "A volume of it is in use on another host, and its storage class lets one host use it at a time. "
                    "Stop your other environment of this workspace first. {said}"
                )
                return Trouble("failed", text, said, final=False)
            return Trouble("failed", "A volume of it is still leaving another host.", said, final=False, patient=True)
    return None


def why_gone(events: Iterable[Object], *, host_ready: bool) -> Trouble:
    """Why there is no pod any more, by what was said of it and by how its host is."""
    return of_events(events) or (DELETED if host_ready else LOST)


def _of_container(one: Object) -> Trouble | None:
    state = one.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    reason, said = waiting.get("reason", ""), str(waiting.get("message", ""))
    if reason in _PULLING:
        final = reason in ("InvalidImageName", "ErrImageNeverPull") or any(sign in said.lower() for sign in _FOR_GOOD)
        return Trouble("image_pull_failed", "The image {said} cannot be pulled.",
                       f"{one.get('image', '')} ({said or reason})", final)  # fmt: skip
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"):
        return Trouble("failed", "The container cannot be made: {said}", said or reason)
    if ended.get("reason") == "OOMKilled":
        return Trouble("oom_killed", "It used more memory than it has and was killed. Ask for more, or use less.")
    if ended and (ended.get("exitCode") or one["name"] == CONTAINER):
        said = str(ended.get("message") or ended.get("reason") or "")
        text = f"exit code {ended.get('exitCode')}" + (f", {said}" if said not in ("", "Error", "Completed") else "")
        reason = "failed" if ended.get("exitCode") else "exited"
        return Trouble(reason, "The server ended by itself ({said}).", text)
    return None


def _of_scheduling(status: Object) -> Trouble | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            said = str(condition.get("message", ""))
            if condition.get("reason") == "SchedulingGated":
                return Trouble(
                    "unschedulable", "It waits in the queue of the cluster.", said, final=False, patient=True
                )
            return Trouble("unschedulable", "The cluster finds no place for it: {said}", said, final=False)
    return None


def run_of(pod: Object, *, node_ready: bool) -> Run:
    """A run as its pod shows it. The pod wears this hub's labels."""
    status = pod.get("status") or {}
    own = next((one for one in _statuses(status) if one["name"] == CONTAINER), {})
    state = own.get("state") or {}
    runs = status.get("phase") == "Running" and "running" in state
    over = status.get("phase") in ("Failed", "Succeeded") or "terminated" in state
    found = trouble(pod)
    if not node_ready and not over and pod["metadata"].get("deletionTimestamp"):
        over, found = True, LOST
    return Run(
        allocation_id=int(pod["metadata"]["labels"][ALLOCATION_LABEL]),
        mark=pod["metadata"]["uid"],
        alive=runs and node_ready and not over,
        over=over,
        ended_at=moment((state.get("terminated") or {}).get("finishedAt")),
        reason=found.reason if found and (over or found.final) else "",
        message=found.text.format(said=found.said) if found and (over or found.final) else "",
        gpu_uuids=_gpu_uuids(pod, own),
    )


def _gpu_uuids(pod: Object, container: Object) -> tuple[str, ...]:
    """Which devices the pod was given: as the kubelet tells from 1.31 on (its feature ResourceHealthStatus), or as HAMi
    notes, `UUID,NVIDIA,memory,cores:;`. A time-sliced device is told as `UUID::number`."""
    told = [
        str(one["resourceID"]).split("::", 1)[0]
        for part in container.get("allocatedResourcesStatus") or ()
        for one in part.get("resources") or ()
    ]
    noted = (pod["metadata"].get("annotations") or {}).get("hami.io/vgpu-devices-allocated", "")
    told += [part.split(",", 1)[0] for part in noted.replace(";", ":").split(":") if "," in part]
    return tuple(dict.fromkeys(told))


def moment(text: str | None) -> datetime | None:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC) if text else None
