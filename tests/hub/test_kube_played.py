"""A hub on any API server, the tester's own too (KUBECONFIG): nodes are objects and their kubelets are played, so that
this runs on every version of Kubernetes that somebody can name. Else on the one of `test_cluster`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remotegpu_hub import workers
from remotegpu_hub.clients.kubernetes import CONFIG_MAPS, EVENTS, NODES, PODS, SERVICES, VOLUME_CLAIMS, Kind
from remotegpu_hub.clients.nodes import ALLOCATION_LABEL, HUB_LABEL, VOLUME_LABEL
from remotegpu_hub.db import begin
from remotegpu_hub.domain import users, volumes
from remotegpu_hub.orm import EndReason, EnvironmentState, Volume
from tests.cluster.cluster import LocalCluster
from tests.cluster.played import MARK, MODEL, add, name_of, played_nodes
from tests.kube_hubs import KubeHub
from tests.worlds import ADMIN

ADDRESS = "127.0.0.9"
COUNT = 3
POOL = f'c.RemoteGPU.pools = [{{"name": "played", "node_selector": {{"{MARK}": "true"}}, "simulated": True}}]'
ONE_GPU = {"gpus": 1, "gpu_model": MODEL}


class PlayedCluster(LocalCluster):
    """Images are only named here."""

    def digest_of(self, image: str) -> str:
        return "sha256:" + "1" * 64


@pytest.fixture(scope="module")
def hub(scheduler: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeHub]:
    cluster = PlayedCluster(scheduler, "registry.example.org", Path("/"), node=name_of(0), address="127.0.0.1")
    folder = tmp_path_factory.mktemp("kube-played")
    with played_nodes(scheduler, COUNT, ADDRESS), KubeHub(folder, cluster, POOL) as running:
        running.world.price(f"gpu:{MODEL}", 3600)
        running.until(lambda: running.free(MODEL) == 8 * COUNT, "the nodes are known")
        yield running


@pytest.fixture(autouse=True)
def nothing_left(hub: KubeHub) -> Iterator[None]:
    yield
    hub.stop_all()
    hub.check()


def start(hub: KubeHub, user: str, **wish: Any) -> dict[str, Any]:
    answer = hub.ask(user, {"workspace": "lab", "image": hub.image("plain"), "ports": [], **ONE_GPU, **wish})
    assert answer.status_code in (201, 202), answer.text
    hub.until(lambda: hub.model(user).get("ready"), f"{user}'s pod runs")
    return hub.pod_of(user)


def test_a_pod_is_placed_with_all_that_it_asks_for_and_only_its_home_stays(hub: KubeHub):
    pod = start(hub, "alice", gpus=2, ports=["tensorboard", "ssh"])
    assert pod["spec"]["nodeName"] == hub.host_of("alice")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    services = hub.kube(lambda kube: kube.list(SERVICES, hub.namespace)).items
    ports = {port["nodePort"] for one in services for port in one["spec"]["ports"]}
    assert ports == {port.external_port for port in hub.run_of("alice").ports}
    hub.stop_server("alice")
    for kind in (PODS, SERVICES):
        assert hub.kube(lambda kube, kind=kind: kube.list(kind, hub.namespace)).items == []
    kept = hub.kube(lambda kube: kube.list(VOLUME_CLAIMS, hub.namespace)).items
    assert len(kept) == 1
    files = hub.kube(lambda kube: kube.list(CONFIG_MAPS, hub.namespace)).items
    assert [one for one in files if one["metadata"]["name"] != "kube-root-ca.crt"] == []


def test_the_devices_that_a_run_was_given_are_learned(hub: KubeHub):
    name = start(hub, "alice", gpus=2)["metadata"]["name"]
    told = {"hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,81559,100:GPU-b,NVIDIA,81559,100:;"}
    hub.kube(lambda kube: kube.patch(PODS, name, {"metadata": {"annotations": told}}, hub.namespace))
    assert hub.reconcile() == []
    assert {slot.observed_uuid for slot in hub.run_of("alice").slots} == {"GPU-a", "GPU-b"}


def test_what_its_node_evicts_ends_with_that_reason_and_the_nodes_own_words(hub: KubeHub):
    pod = start(hub, "alice")
    told = {"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}}
    path = PODS.path(hub.namespace, pod["metadata"]["name"], "status")
    hub.kube(lambda kube: kube._json("PATCH", path, body=told, content_type="application/merge-patch+json"))
    hub.until_free("alice")
    run = hub.run_of("alice")
    assert (run.end_reason, run.environment.state) == (EndReason.EVICTED, EnvironmentState.ERROR)
    assert "low on memory" in run.environment.message


def test_what_was_on_a_node_that_is_gone_from_the_cluster_ends_as_lost_with_it(hub: KubeHub):
    pod = start(hub, "alice")
    node, name = pod["spec"]["nodeName"], pod["metadata"]["name"]
    hub.kube(lambda kube: kube.delete(NODES, node))
    try:  # the cluster's collector of orphaned pods does the same a minute later
        hub.kube(lambda kube: kube.delete(PODS, name, hub.namespace, grace=0))
        hub.until_free("alice")
    finally:
        hub.kube(lambda kube: add(kube, int(node.removeprefix(f"{MARK}-"))))
    run = hub.run_of("alice")
    assert (run.end_reason, run.environment.state) == (EndReason.NODE_LOST, EnvironmentState.ERROR)
    assert "host" in run.environment.message
    hub.until(lambda: hub.free(MODEL) == 8 * COUNT, "the node is back")


def test_a_node_port_by_which_somebodys_load_balancer_is_watched_is_not_given_out(hub: KubeHub):
    taken = 31000  # the first of the range
    spec = {
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": taken, "selector": {"a": "b"},
        "ports": [{"port": 80, "nodePort": 32000}],
    }  # fmt: skip
    body = {"metadata": {"name": "theirs"}, "spec": spec}
    hub.kube(lambda kube: kube.create(SERVICES, body, hub.namespace))
    try:
        start(hub, "alice", ports=["tensorboard"])
        assert [port.external_port for port in hub.run_of("alice").ports] == [taken + 1]
    finally:
        hub.kube(lambda kube: kube.delete(SERVICES, "theirs", hub.namespace))


def test_what_wears_the_hubs_mark_and_stands_for_nothing_is_told_and_what_is_left_of_a_run_removed(hub: KubeHub):
    run_id = start(hub, "bob")["metadata"]["labels"][ALLOCATION_LABEL]
    hub.stop_server("bob")
    with begin(hub.engine) as session:
        home = users.current(session, name="bob").id
        volume = next(one for one in session.query(Volume).filter_by(user_id=home) if one.deleted_at is None)
        volumes.delete(session, volume_id=volume.id, actor=ADMIN, now=hub.world.now)
        given_up = str(volume.id)
    port: dict[str, Any] = {"spec": {"ports": [{"port": 80}]}}
    claim = {
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1G"}}}
    }
    pod_of_nobody = {"nodeName": "nowhere", "containers": [{"name": "c", "image": "i"}]}
    made = [
        (SERVICES, "strange", hub.hub_id, {ALLOCATION_LABEL: "987654"}, port),
        (CONFIG_MAPS, "odd", hub.hub_id, {ALLOCATION_LABEL: "no-number"}, {}),
        (VOLUME_CLAIMS, "nobodys", hub.hub_id, {VOLUME_LABEL: "987654"}, claim),
        (SERVICES, "others", "another-hub", {ALLOCATION_LABEL: "987654"}, port),
        (CONFIG_MAPS, "leaked", hub.hub_id, {ALLOCATION_LABEL: run_id}, {}),
        (PODS, "strange", hub.hub_id, {ALLOCATION_LABEL: "9" * 30}, {"spec": pod_of_nobody}),
    ]

    def right() -> bool:
        """What is left alone is there, and what goes is not; other tests' things are nobody's matter here."""
        kinds = (SERVICES, CONFIG_MAPS, VOLUME_CLAIMS)
        found = [one["metadata"] for kind in kinds for one in listed(hub, kind)]
        homes = {one["labels"].get(VOLUME_LABEL) for one in found if one.get("labels")}
        names = {one["name"] for one in found}
        return {"strange", "odd", "nobodys", "others"} <= names and "leaked" not in names and given_up not in homes

    for kind, name, hub_id, label, body in made:
        metadata = {"name": name, "labels": {HUB_LABEL: hub_id, **label}}
        hub.kube(lambda kube, kind=kind, whole={"metadata": metadata, **body}: kube.create(kind, whole, hub.namespace))
    try:
        told = {str(one): one.allocation_id for one in hub.reconcile() if one.fault == workers.Fault.UNKNOWN}
        assert told == {
            "run 987654, services/strange": 987654, "configmaps/odd": None, "persistentvolumeclaims/nobodys": None,
        }  # fmt: skip
        hub.until(right, "only what is left alone is there")
    finally:
        for kind, name, *_ in made:
            hub.kube(lambda kube, kind=kind, name=name: kube.delete(kind, name, hub.namespace))


def test_nobody_gets_a_home_whose_number_was_given_before_a_backup_was_restored(hub: KubeHub):
    hub.world.workspace("restored", owner="alice")
    mounted = start(hub, "alice", workspace="restored")["spec"]["volumes"]
    (name,) = (one["persistentVolumeClaim"]["claimName"] for one in mounted if "persistentVolumeClaim" in one)
    hub.stop_server("alice")
    theirs = {"metadata": {"annotations": {"remotegpu-hub/made": "2026-11-01T00:00:00+00:00"}}}
    hub.kube(lambda kube: kube.patch(VOLUME_CLAIMS, name, theirs, hub.namespace))
    try:
        answer = hub.ask("alice", {"workspace": "restored", "image": hub.image("plain"), "ports": [], **ONE_GPU})
        assert (answer.status_code, name in answer.json()["message"]) == (409, True), answer.text
        assert hub.pods() == []
    finally:
        hub.kube(lambda kube: kube.delete(VOLUME_CLAIMS, name, hub.namespace))


def listed(hub: KubeHub, kind: Kind) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = hub.kube(lambda kube: kube.list(kind, hub.namespace)).items
    return found


def say(hub: KubeHub, pod: dict[str, Any], **said: Any) -> None:
    """Let the cluster say something of a pod."""
    about = {"kind": "Pod", "namespace": hub.namespace, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    event = {"metadata": {"generateName": "played-", "namespace": hub.namespace}, "involvedObject": about, **said}
    hub.kube(lambda kube: kube.create(EVENTS, event, hub.namespace))


def test_a_home_that_another_host_has_is_told_and_given_up_long_before_the_time_out(hub: KubeHub):
    hub.ask("alice", {"workspace": "lab", "image": hub.image("mute"), "ports": [], **ONE_GPU})
    hub.until(lambda: any(pod["spec"].get("nodeName") for pod in hub.pods()), "its pod has a node")
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    used = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) rgpu-alice-1-x'
    say(hub, hub.pod_of("alice"), reason="Odd")  # all else of an event may be missing
    say(hub, hub.pod_of("alice"), reason="FailedAttachVolume", message=used, lastTimestamp=at)
    hub.until_free("alice", seconds=30)
    run = hub.run_of("alice")
    assert (run.end_reason, run.environment.state) == (EndReason.FAILED, EnvironmentState.ERROR)
    assert "Stop your other environment" in run.environment.message
    assert "rgpu-alice-1-x" in run.environment.message


def test_what_a_quota_of_the_cluster_refuses_is_told_at_once_and_holds_nothing(hub: KubeHub):
    where = f"/api/v1/namespaces/{hub.namespace}/resourcequotas"
    body = {"metadata": {"name": "no-gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
    hub.kube(lambda kube: kube._json("POST", where, body=body))
    try:
        counted = lambda: hub.kube(lambda kube: kube._json("GET", f"{where}/no-gpus"))["status"].get("hard")  # noqa: E731
        hub.until(counted, "the cluster counts")
        hub.ask("alice", {"workspace": "lab", "image": hub.image("plain"), "ports": ["tensorboard"], **ONE_GPU})
        hub.until_free("alice", seconds=20)
        run = hub.run_of("alice")
        assert (run.end_reason, run.environment.state) == (EndReason.FAILED, EnvironmentState.ERROR)
        assert "The cluster's own rules refuse it" in run.environment.message
        assert "exceeded quota: no-gpus" in run.environment.message
        assert hub.kube(lambda kube: kube.list(SERVICES, hub.namespace)).items == []
    finally:
        hub.kube(lambda kube: kube._json("DELETE", f"{where}/no-gpus"))
    start(hub, "alice")


def test_a_node_that_loses_gpus_is_shown_with_what_it_has_and_what_runs_stays(hub: KubeHub):
    node = start(hub, "alice", gpus=8)["spec"]["nodeName"]
    path = NODES.path(None, node, "status")

    def has(count: int) -> None:
        room = {"nvidia.com/gpu": str(count)}
        body = {"status": {"capacity": room, "allocatable": room}}
        hub.kube(lambda kube: kube._json("PATCH", path, body=body, content_type="application/merge-patch+json"))

    has(6)
    try:
        answer = hub.ask("bob", {"workspace": "lab", "image": hub.image("plain"), "ports": [], **ONE_GPU, "gpus": 8})
        assert answer.status_code in (201, 202), "another node has eight"
        assert hub.model("alice")["ready"]
        assert hub.reconcile() == []
    finally:
        has(8)
    hub.until(lambda: hub.model("bob").get("ready"), "it runs")
    assert hub.host_of("bob") != node


def test_gpus_that_are_split_by_mig_while_one_is_held_are_given_in_slices_and_the_holder_stays(hub: KubeHub):
    node = start(hub, "alice")["spec"]["nodeName"]
    product = "NVIDIA-H100-80GB-HBM3"
    slices = "nvidia.com/mig-1g.10gb"
    hub.world.price(f"gpu:{MODEL}/1g.10gb", 500)

    def becomes(labels: dict[str, str | None], room: dict[str, str | None]) -> None:
        told = {"status": {"capacity": room, "allocatable": room}}
        merge = "application/merge-patch+json"
        hub.kube(lambda kube: kube.patch(NODES, node, {"metadata": {"labels": labels}}))
        hub.kube(lambda kube: kube._json("PATCH", NODES.path(None, node, "status"), body=told, content_type=merge))

    try:
        becomes(
            {"nvidia.com/gpu.product": f"{product}-MIG-INVALID", "nvidia.com/gpu.replicas": "0"},
            {"nvidia.com/gpu": "0"},
        )
        hub.until(lambda: hub.free(MODEL) == 8 * (COUNT - 1), "what is between two layouts is not given, others are")
        becomes({"nvidia.com/gpu.product": product, "nvidia.com/gpu.replicas": "1"}, {slices: "14"})
        hub.until(lambda: hub.free(f"{MODEL}/1g.10gb") == 14, "its slices are there")
        pod = start(hub, "bob", gpu_model=f"{MODEL}/1g.10gb")
        assert pod["spec"]["nodeName"] == node
        assert pod["spec"]["containers"][0]["resources"]["limits"][slices] == "1"
        assert hub.reconcile() == []
        assert hub.model("alice")["ready"]
        for user in ("alice", "bob"):
            hub.stop_server(user)
    finally:
        becomes(
            {"nvidia.com/gpu.product": product, "nvidia.com/gpu.replicas": None}, {"nvidia.com/gpu": "8", slices: None}
        )
    hub.until(lambda: hub.free(MODEL) == 8 * COUNT, "they are whole again")
    assert hub.free(f"{MODEL}/1g.10gb") == 0
