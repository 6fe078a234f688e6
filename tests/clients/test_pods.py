"""What a pod's status says of a run, in plain words."""

from datetime import UTC, datetime
from typing import Any

import pytest

from remotegpu_hub.clients import pods
from remotegpu_hub.clients.nodes import ALLOCATION_LABEL
from remotegpu_hub.clients.pods import Trouble
from remotegpu_hub.observed import Run
from remotegpu_hub.orm import EndReason

IMAGE = "registry.example.org/team/image@sha256:abc"


def pod(
    phase: str = "Running", *, state: dict[str, Any] | None = None, deleted: bool = False,
    conditions: list[dict[str, Any]] | None = None, init: dict[str, Any] | None = None, **status: Any,
) -> dict[str, Any]:  # fmt: skip
    metadata: dict[str, Any] = {"name": "p", "uid": "uid-1", "labels": {ALLOCATION_LABEL: "7"}}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-25T06:00:00Z"
    containers = [] if state is None else [
        {"name": "helper", "image": "h", "state": {"running": {}}}, {"name": "notebook", "image": IMAGE, "state": state},
    ]  # fmt: skip
    told: dict[str, Any] = {"phase": phase, "containerStatuses": containers, "conditions": conditions or [], **status}
    if init is not None:
        told["initContainerStatuses"] = [{"name": "init", "image": "i", "state": init}]
    return {"metadata": metadata, "spec": {}, "status": told}


RUNS = {"running": {"startedAt": "2026-11-25T05:00:00Z"}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, reason: str = "Error", message: str | None = None) -> dict[str, Any]:
    return {
        "terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-11-25T05:30:07Z"}
    }


def scheduled(reason: str, message: str) -> list[dict[str, Any]]:
    return [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]


TAKEN = "The cluster took its place away: {said}"
PULL = "The image {said} cannot be pulled."
CASES = [
    pytest.param(pod(state=RUNS), None, id="it runs"),
    pytest.param(pod("Pending"), None, id="on its way"),
    pytest.param(pod("Pending", state=waiting("ContainerCreating")), None, id="being made"),
    pytest.param(pod("Pending", state=waiting("ErrImagePull", "manifest unknown")),
                 Trouble("image_pull_failed", PULL, f"{IMAGE} (manifest unknown)"), id="no such image"),
    pytest.param(pod("Pending", state=waiting("ErrImagePull", "401 Unauthorized")),
                 Trouble("image_pull_failed", PULL, f"{IMAGE} (401 Unauthorized)"), id="not allowed"),
    pytest.param(pod("Pending", state=waiting("ErrImagePull", "connection refused")),
                 Trouble("image_pull_failed", PULL, f"{IMAGE} (connection refused)", False), id="the registry is down"),
    pytest.param(pod("Pending", state=waiting("ImagePullBackOff")),
                 Trouble("image_pull_failed", PULL, f"{IMAGE} (ImagePullBackOff)", False), id="pulling again"),
    pytest.param(pod("Pending", state=waiting("InvalidImageName", "bad")),
                 Trouble("image_pull_failed", PULL, f"{IMAGE} (bad)"), id="no image's name"),
    pytest.param(pod("Pending", state=waiting("CreateContainerConfigError", "image will run as root")),
                 Trouble("failed", "The container cannot be made: {said}", "image will run as root"), id="runs as root"),
    pytest.param(pod("Failed", state=ended(137, "OOMKilled")),
                 Trouble("oom_killed", "It used more memory than it has and was killed. Ask for more, or use less."),
                 id="out of memory"),
    pytest.param(pod("Succeeded", state=ended(0, "Completed")),
                 Trouble("exited", "The server ended by itself ({said}).", "exit code 0"), id="shut down by its user"),
    pytest.param(pod("Failed", state=ended(3, "Error", "no port")),
                 Trouble("failed", "The server ended by itself ({said}).", "exit code 3, no port"), id="it failed"),
    pytest.param(pod("Pending", init=ended(1)),
                 Trouble("failed", "The server ended by itself ({said}).", "exit code 1"), id="its init container failed"),
    pytest.param(pod("Pending", init=ended(0, "Completed")), None, id="its init container is done"),
    pytest.param(pod("Failed", reason="Evicted", message="low on memory"),
                 Trouble("evicted", "The host ran short and ended it: {said}", "low on memory"), id="evicted by its host"),
    pytest.param(pod(state=RUNS, reason="NodeLost"), Trouble("node_lost", "Its host does not answer any more."),
                 id="lost with its node"),
    pytest.param(pod("Failed", reason="OutOfcpu", message="Node didn't have enough"),
                 Trouble("unschedulable", "The host refused it: {said}", "Node didn't have enough"), id="no cpu there"),
    pytest.param(pod("Failed", reason="UnexpectedAdmissionError"),
                 Trouble("unschedulable", "The host refused it: {said}", "UnexpectedAdmissionError"), id="no device there"),
    pytest.param(pod("Failed", reason="NodeShutdown", message="Pod was rejected as the node is shutting down."),
                 Trouble("unschedulable", "The host refused it: {said}", "Pod was rejected as the node is shutting down."),
                 id="its host goes down and takes nothing new"),
    pytest.param(pod("Failed", reason="Shutdown", message="Node is in progress of shutting down, not admitting any new pods"),
                 Trouble("unschedulable", "The host refused it: {said}",
                         "Node is in progress of shutting down, not admitting any new pods"),
                 id="its host goes down and takes nothing new, before 1.22"),
    pytest.param(pod("Failed", reason="Shutdown", message="Node is shutting, evicting pods", state=ended(143)),
                 Trouble("evicted", "The host was shut down and ended it: {said}", "Node is shutting, evicting pods"),
                 id="its host was shut down, before 1.22"),
    pytest.param(pod("Failed", reason="Terminated", message="imminent node shutdown", state=ended(143)),
                 Trouble("evicted", "The host was shut down and ended it: {said}", "imminent node shutdown"),
                 id="its host was shut down"),
    pytest.param(pod("Failed", reason="Preempting", message="Preempted in order to admit critical pod"),
                 Trouble("evicted", TAKEN, "Preempted in order to admit critical pod"), id="preempted by its host"),
    pytest.param(
        pod("Failed", state=RUNS, conditions=[
            {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": "no longer exists"}]),
        Trouble("node_lost", "Its host does not answer any more."), id="its node's object is gone, not deleted yet"),
    pytest.param(pod(state=RUNS, deleted=True),
                 Trouble("pod_deleted", "Its pod was deleted by somebody outside this hub."), id="deleted by hand"),
    pytest.param(pod("Failed", state=ended(137), deleted=True),
                 Trouble("pod_deleted", "Its pod was deleted by somebody outside this hub."), id="deleted and killed"),
    pytest.param(
        pod(state=RUNS, deleted=True, conditions=[
            {"type": "DisruptionTarget", "status": "True", "message": "preempted by default/b"}]),
        Trouble("evicted", TAKEN, "preempted by default/b"), id="preempted"),
    pytest.param(pod("Pending", conditions=scheduled("Unschedulable", "0/3 nodes")),
                 Trouble("unschedulable", "The cluster finds no place for it: {said}", "0/3 nodes", False), id="no place"),
    pytest.param(pod("Pending", conditions=scheduled("SchedulingGated", "waits for kueue")),
                 Trouble("unschedulable", "It waits in the queue of the cluster.", "waits for kueue", False, True),
                 id="in a queue"),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "found"), CASES)
def test_what_is_wrong_with_a_pod_is_told_with_its_reason(seen: dict[str, Any], found: Trouble | None) -> None:
    assert pods.trouble(seen) == found
    if found is not None:
        assert EndReason(found.reason)


@pytest.mark.parametrize(
    ("events", "found"),
    [
        pytest.param([("Preempted", "Preempted by a/b on node n1"), ("Killing", "Stopping container")],
                     Trouble("evicted", TAKEN, "Preempted by a/b on node n1"), id="preempted"),
        pytest.param([("TaintManagerEviction", "Marking for deletion Pod a/b")],
                     Trouble("evicted", TAKEN, "Marking for deletion Pod a/b"), id="its node was tainted"),
        pytest.param([("TaintManagerEviction", "Marking for deletion Pod a/b"),
                      ("TaintManagerEviction", "Cancelling deletion of Pod a/b"), ("Killing", "Stopping container")], None,
                     id="the taint was taken back"),
        pytest.param([("Killing", "Stopping container"), ("Killing", None)], None, id="somebody deleted it"),
    ],
)  # fmt: skip
def test_before_1_26_the_cluster_tells_by_events_what_it_took_away(
    events: list[tuple[str, str]], found: Trouble | None
) -> None:
    told = [{"reason": reason, "message": said} for reason, said in events]
    assert pods.of_events(told) == found
    assert pods.why_gone(told, host_ready=True) == (found or pods.DELETED)
    assert pods.why_gone(told, host_ready=False) == (found or pods.LOST), "its host took it along"


IN_USE = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) rgpu-alice-40-01234567'
LEAVING = 'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node'


@pytest.mark.parametrize(
    ("events", "final", "patient"),
    [
        pytest.param([("Scheduled", "x"), ("FailedAttachVolume", IN_USE)], False, False, id="another run has it"),
        pytest.param([("FailedMount", IN_USE), ("FailedMount", "timed out")], False, False, id="told by the kubelet"),
        pytest.param([("FailedAttachVolume", LEAVING)], False, True, id="its last host lets it go"),
        pytest.param([("FailedAttachVolume", IN_USE), ("SuccessfulAttachVolume", "x")], None, None, id="it came"),
        pytest.param([("FailedMount", "no such share")], None, None, id="told as the kubelet says it"),
    ],
)  # fmt: skip
def test_a_volume_that_another_host_has_is_told_and_given_up_where_waiting_does_not_help(
    events: list[tuple[str, str]], final: bool | None, patient: bool | None
) -> None:
    found = pods.of_volumes([{"reason": reason, "message": said} for reason, said in events])
    assert (found and found.final, found and found.patient) == (final, patient)


END = datetime(2026, 11, 25, 5, 30, 7, tzinfo=UTC)
BY_ITSELF = "The server ended by itself (exit code 0)."
OUTSIDE = "Its pod was deleted by somebody outside this hub."


@pytest.mark.parametrize(
    ("seen", "node_ready", "run"),
    [
        pytest.param(pod(state=RUNS), True, Run(7, "uid-1"), id="it runs"),
        pytest.param(pod(state=RUNS), False, Run(7, "uid-1", alive=False), id="its node is silent: nobody knows"),
        pytest.param(pod("Pending"), True, Run(7, "uid-1", alive=False), id="it has not begun"),
        pytest.param(pod("Succeeded", state=ended(0, "Completed")), True,
                     Run(7, "uid-1", False, True, END, "exited", BY_ITSELF), id="it ended at a second that is known"),
        pytest.param(pod(state=ended(0, "Completed")), True,
                     Run(7, "uid-1", False, True, END, "exited", BY_ITSELF), id="its server ended, a helper runs on"),
        pytest.param(pod(state=RUNS, deleted=True), True, Run(7, "uid-1", reason="pod_deleted", message=OUTSIDE),
                     id="it is going"),
        pytest.param(pod(state=RUNS, deleted=True), False,
                     Run(7, "uid-1", False, True, None, "node_lost", "Its host does not answer any more."),
                     id="given up by the cluster with its node"),
        pytest.param(pod("Failed", reason="Evicted", message="short"), True,
                     Run(7, "uid-1", False, True, None, "evicted", "The host ran short and ended it: short"),
                     id="evicted, which tells no second"),
    ],
)  # fmt: skip
def test_a_run_is_as_its_pod_shows_it(seen: dict[str, Any], node_ready: bool, run: Run) -> None:
    assert pods.run_of(seen, node_ready=node_ready) == run


def test_the_devices_are_those_that_the_kubelet_or_hami_tells() -> None:
    seen = pod(state=RUNS)
    seen["status"]["containerStatuses"][1]["allocatedResourcesStatus"] = [
        {"name": "nvidia.com/gpu", "resources": [{"resourceID": "GPU-1::0"}, {"resourceID": "GPU-2::3"}]}
    ]
    assert pods.run_of(seen, node_ready=True).gpu_uuids == ("GPU-1", "GPU-2")
    noted = pod(state=RUNS)
    noted["metadata"]["annotations"] = {
        "hami.io/vgpu-devices-allocated": "GPU-3,NVIDIA,20480,25:GPU-4,NVIDIA,20480,25:;"
    }
    assert pods.run_of(noted, node_ready=True).gpu_uuids == ("GPU-3", "GPU-4")
