"""Environments as pods of a real cluster, with a real kubelet and a registry that wants a password."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from remotegpu_hub import workers
from remotegpu_hub.clients.kubernetes import CONFIG_MAPS, INGRESSES, NODES, PODS, SERVICES, VOLUME_CLAIMS, Kind
from remotegpu_hub.clients.nodes import HUB_LABEL, VOLUME_LABEL, is_ready, quantity
from remotegpu_hub.db import begin
from remotegpu_hub.domain import keys, users, volumes
from remotegpu_hub.orm import AllocationState, EndReason, EnvironmentState, SshKey, Volume
from remotegpu_hub.runtime import utcnow
from tests.cluster.cluster import HERE, NODE, LocalCluster
from tests.kube_hubs import A100, KubeHub
from tests.worlds import ADMIN

STORAGE_CLASSES = Kind("apis/storage.k8s.io/v1", "storageclasses", namespaced=False)
SHARED = 'c.RemoteGPU.shared_size, c.RemoteGPU.shared_storage_class = "1G", "growing"'
"""The class of homes lets nothing grow."""


@pytest.fixture(scope="module")
def hub(test_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeHub]:
    with KubeHub(tmp_path_factory.mktemp("kube"), test_cluster, SHARED) as running:
        growing = {
            "metadata": {"name": "growing"},
            "provisioner": "kubernetes.io/host-path",
            "allowVolumeExpansion": True,
        }
        running.kube(lambda kube: kube.ensure(STORAGE_CLASSES, growing, labels={}))
        yield running
        running.kube(lambda kube: kube.delete(STORAGE_CLASSES, "growing"))


@pytest.fixture(autouse=True)
def nothing_left(hub: KubeHub) -> Iterator[None]:
    """Begin on a node that takes pods: one whose reports were held up is tainted for a while. Leave nothing."""
    hub.until(lambda: takes_pods(hub), "the node takes pods")
    yield
    hub.stop_all()
    hub.check()


def takes_pods(hub: KubeHub) -> bool:
    node = hub.kube(lambda kube: kube.get(NODES, NODE))
    return is_ready(node) and not node["spec"].get("taints") and hub.host_status() == "online"


def test_a_pod_runs_where_admission_chose_with_what_it_holds_and_leaves_only_its_volumes(hub: KubeHub):
    life = hub.start_server("alice", {"gpus": 2, "gpu_model": A100})
    pod = hub.pod_of("alice")
    container = pod["spec"]["containers"][0]
    assert pod["spec"]["nodeName"] == hub.host_of("alice") == NODE
    assert container["image"].startswith(hub.image("plain").removesuffix(":plain") + "@sha256:")
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["status"]["qosClass"] == "Guaranteed"
    assert life.env["REMOTEGPU_WORKSPACE"] == "lab"
    assert life.env["REMOTEGPU_SIMULATED_GPUS"] == "1"
    assert life.uid == 1000
    assert hub.run_of("alice").mark == pod["metadata"]["uid"]
    claims = {one["metadata"]["uid"] for one in hub.kube(lambda kube: kube.list(VOLUME_CLAIMS, hub.namespace)).items}
    assert len(claims) == 2, "a home and what the workspace shares"
    hub.stop_server("alice")
    assert hub.pods() == []
    assert hub.run_of("alice").end_reason == EndReason.USER
    kept = hub.kube(lambda kube: kube.list(VOLUME_CLAIMS, hub.namespace)).items
    assert {one["metadata"]["uid"] for one in kept} == claims, "volumes stay"


def test_volumes_outlive_runs_are_shared_as_they_should_be_and_grow_where_the_cluster_lets_them(hub: KubeHub):
    writer = {"image": hub.image("writer")}
    hub.start_server("bob", writer)
    other = hub.start_server("alice", writer)
    assert other.env["REMOTEGPU_FOUND_SHARED"] == "bob", "alice's pod sees what bob's, which runs, has written"
    hub.stop_server("bob")
    grow(hub, 2 * 2**30)
    assert "Your home stays at 1 GiB: the cluster does not let it grow to 2 GiB." in told_while_starting(hub, "bob")
    life = hub.life(hub.run_of("bob").id)
    assert life.env["REMOTEGPU_FOUND_AT_HOME"] == "1", "what the first run wrote is there"
    assert life.env["REMOTEGPU_FOUND_SHARED"] == "alice bob"
    assert claimed(hub) == {"bob": 2**30, "alice": 2**30, "all": 2 * 2**30}, "what is shared has grown"
    assert hub.held_storage("bob") == 2 * 2**30
    hub.stop_server("bob")
    with begin(hub.engine) as session:
        volumes.delete(session, volume_id=homes(hub)["bob"], actor=ADMIN, now=hub.world.now)
    assert hub.reconcile() == []
    hub.until(lambda: "bob" not in homes(hub), "the given up home is gone")
    assert hub.held_storage("bob") == 0


def grow(hub: KubeHub, size_bytes: int) -> None:
    """All volumes of the workspace, as an admission does where the configured sizes have become larger."""
    with begin(hub.engine) as session:
        for volume in session.query(Volume).filter_by(deleted_at=None):
            volumes.ensure(
                session, user_id=volume.user_id or 0, workspace_id=volume.workspace_id, there={volume.kind: volume},
                sizes={volume.kind: size_bytes}, actor=ADMIN, now=hub.world.now,
            )  # fmt: skip


def told_while_starting(hub: KubeHub, user: str) -> str:
    """Start it as it is kept; what its user reads meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(hub.ask, user)
        hub.until(lambda: hub.model(user).get("pending") == "spawn", "it is starting")
        headers = {"Authorization": f"token {hub.token}"}
        url = f"{hub.api_url}/{hub.path(user)}/progress"
        with httpx.stream("GET", url, headers=headers, timeout=90, trust_env=False) as live:
            said = live.read().decode()
        assert asked.result().status_code in {201, 202}
    hub.until(lambda: hub.model(user).get("ready"), "it runs")
    return said


def claimed(hub: KubeHub) -> dict[str, int]:
    """Bytes that the claims of homes ask for, by user, and of what is shared by `all`."""
    return {
        one["metadata"]["annotations"].get("remotegpu-hub/user", "all"): int(
            quantity(one["spec"]["resources"]["requests"]["storage"])
        )
        for one in hub.kube(lambda kube: kube.list(VOLUME_CLAIMS, hub.namespace)).items
    }


def homes(hub: KubeHub) -> dict[str, int]:
    """The claims of homes that are there: number of the volume by user."""
    claims = hub.kube(lambda kube: kube.list(VOLUME_CLAIMS, hub.namespace)).items
    return {
        one["metadata"]["annotations"]["remotegpu-hub/user"]: int(one["metadata"]["labels"][VOLUME_LABEL])
        for one in claims
        if "remotegpu-hub/user" in one["metadata"]["annotations"]
    }


def test_what_a_pod_prints_is_read_from_its_end_from_a_moment_on_and_as_it_comes(hub: KubeHub):
    hub.start_server("alice", {"image": hub.image("talker")})
    url = f"{hub.url}services/workspaces/api/environments/{hub.run_of('alice').environment_id}/logs"
    given = {"headers": {"Authorization": f"token {hub.token_of('alice')}"}, "timeout": 30, "trust_env": False}

    def printed(**query: Any) -> list[str]:
        return httpx.get(url, params=query, **given).text.split()

    assert printed() == ["one", "two", "three"]
    assert printed(tail=2) == ["two", "three"]
    time.sleep(1.1)  # since is to the second
    later = utcnow().isoformat()
    assert printed(since=later) == []
    try:
        with httpx.stream("GET", url, params={"follow": True, "since": later}, **given) as live:
            (hub.runs / "talk").touch()
            assert next(line for line in live.iter_lines() if line) == "four", "nothing from before"
    finally:
        (hub.runs / "talk").unlink()
    assert printed(since=later) == ["four"]
    command = [sys.executable, "-m", "remotegpu_hub.app", "environments", "logs", url.split("/")[-2]]
    variables = {"REMOTEGPU_HUB_URL": hub.url, "REMOTEGPU_TOKEN": hub.token_of("alice")}
    for since, lines in (("1h", ["one", "two", "three", "four"]), (later, ["four"])):
        said = subprocess.run([*command, "--since", since], env={**os.environ, **variables}, capture_output=True)
        assert (said.stdout.decode().split(), said.stderr) == (lines, b"")


def test_who_holds_no_gpu_sees_none(hub: KubeHub):
    life = hub.start_server("alice")
    assert life.env["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert life.env["CUDA_VISIBLE_DEVICES"] == ""
    assert "nvidia.com/gpu" not in hub.pod_of("alice")["spec"]["containers"][0]["resources"]["limits"]


def refusal(hub: KubeHub, user: str, how: str, **options: Any) -> httpx.Response:
    """Ask for a start that fails; the hub answers at once, or when it has."""
    wish = {"workspace": "lab", "image": hub.image(how), **options}
    answer = hub.ask(user, wish)
    hub.until_free(user)
    return answer


def end_of(hub: KubeHub, user: str) -> tuple[EndReason | None, EnvironmentState, str]:
    run = hub.run_of(user)
    return run.end_reason, run.environment.state, run.environment.message


def test_an_image_that_is_not_there_is_told_in_plain_words_long_before_the_time_out(hub: KubeHub):
    refusal(hub, "alice", "missing")
    reason, state, message = end_of(hub, "alice")
    assert (reason, state) == (EndReason.IMAGE_PULL_FAILED, EnvironmentState.ERROR)
    assert "cannot be pulled" in message
    assert "not found" in message
    assert hub.run_of("alice").started_at is None, "nothing is billed"


def test_a_server_that_ends_at_once_is_told_with_its_exit_code(hub: KubeHub):
    refusal(hub, "alice", "crash")
    reason, state, message = end_of(hub, "alice")
    assert (reason, state) == (EndReason.FAILED, EnvironmentState.ERROR)
    assert "exit code 3" in message


def test_what_uses_too_much_memory_is_told_so(hub: KubeHub):
    hub.start_server("alice", {"image": hub.image("hungry")})
    (hub.runs / "eat").touch()
    try:
        hub.until_free("alice")
    finally:
        (hub.runs / "eat").unlink()
    reason, state, message = end_of(hub, "alice")
    assert (reason, state) == (EndReason.OOM_KILLED, EnvironmentState.ERROR)
    assert "more memory" in message
    run = hub.run_of("alice")
    life = hub.life(run.id)
    assert run.ended_at is not None
    assert run.ended_at.timestamp() <= life.ended + 1.2, "billed to its end and no further"


def test_a_pod_that_somebody_deletes_ends_its_run_with_that_reason(hub: KubeHub):
    hub.start_server("alice", {"gpus": 1, "gpu_model": A100})
    name = hub.pod_of("alice")["metadata"]["name"]
    hub.kube(lambda kube: kube.delete(PODS, name, hub.namespace, grace=1))
    hub.until_free("alice")
    reason, state, message = end_of(hub, "alice")
    assert (reason, state) == (EndReason.POD_DELETED, EnvironmentState.ERROR)
    assert "outside this hub" in message


def test_what_a_taint_drives_off_its_node_ends_as_evicted(hub: KubeHub):
    hub.start_server("alice")
    taints = [{"key": "tests", "value": "x", "effect": "NoExecute"}]
    hub.kube(lambda kube: kube.patch(NODES, NODE, {"spec": {"taints": taints}}))
    try:
        hub.until_free("alice")
    finally:
        hub.kube(lambda kube: kube.patch(NODES, NODE, {"spec": {"taints": None}}))
    reason, state, message = end_of(hub, "alice")
    assert (reason, state) == (EndReason.EVICTED, EnvironmentState.ERROR)
    assert "took its place away" in message


@contextmanager
def nobody_looks_at_hosts(hub: KubeHub) -> Iterator[None]:
    """What a node can take is known as it was before."""
    lease = {"name": "sync", "holder": "a test"}

    def taken() -> bool:
        now = utcnow()
        return workers.take_lease(hub.engine, **lease, seconds=120, not_since=now, now=now)

    hub.until(taken, "nobody is at it")
    try:
        yield
    finally:
        workers.end_lease(hub.engine, **lease, now=utcnow())


def test_what_its_host_takes_no_more_when_the_scheduler_looks_is_told_and_given_up(hub: KubeHub):
    with nobody_looks_at_hosts(hub):
        hub.kube(lambda kube: kube.patch(NODES, NODE, {"spec": {"unschedulable": True}}))
        try:
            refusal(hub, "alice", "plain", gpus=1, gpu_model=A100)
        finally:
            hub.kube(lambda kube: kube.patch(NODES, NODE, {"spec": {"unschedulable": None}}))
    reason, state, message = end_of(hub, "alice")
    assert (reason, state) == (EndReason.UNSCHEDULABLE, EnvironmentState.ERROR)
    assert "no place for it" in message
    assert "unschedulable" in message, "in the scheduler's own words"
    assert hub.run_of("alice").started_at is None, "nothing is billed"


def test_a_port_is_reached_from_outside_and_is_given_back(hub: KubeHub):
    hub.start_server("alice", {"ports": ["tensorboard"]})
    (port,) = hub.run_of("alice").ports
    service = hub.kube(lambda kube: kube.list(SERVICES, hub.namespace)).items[0]
    assert service["spec"]["ports"][0]["nodePort"] == port.external_port
    assert service["spec"]["ports"][0]["targetPort"] == port.internal_port == 6006
    hub.stop_server("alice")
    assert hub.kube(lambda kube: kube.list(SERVICES, hub.namespace)).items == []
    hub.start_server("alice", {"ports": ["tensorboard"]})
    assert hub.run_of("alice").ports[0].external_port == port.external_port


@dataclass(frozen=True)
class Key:
    """A key pair that ssh-keygen made."""

    file: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> "Key":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
        return cls(folder / name)

    @property
    def public(self) -> str:
        return self.file.with_suffix(".pub").read_text()

    @property
    def fingerprint(self) -> str:
        told = subprocess.run(["ssh-keygen", "-l", "-f", self.file], check=True, capture_output=True, text=True)
        return told.stdout.split()[1]

    def login(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run what `access` shows, with some words at its end."""
        program, *rest = command.split()
        options = {"IdentityFile": self.file, "IdentitiesOnly": "yes", "BatchMode": "yes", "ConnectTimeout": "5",
                   "UserKnownHostsFile": self.file.parent / "known", "StrictHostKeyChecking": "accept-new"}  # fmt: skip
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return subprocess.run([program, *given, *rest, *words], capture_output=True, text=True, timeout=30)


def add_key(hub: KubeHub, user: str, key: Key) -> SshKey:
    with begin(hub.engine) as session:
        return keys.add(
            session, user=users.current(session, name=user), text=key.public, actor=ADMIN, now=hub.world.now
        )  # fmt: skip


def test_who_has_the_key_logs_in_and_a_key_added_later_is_let_in_without_a_restart(hub: KubeHub, tmp_path: Path):
    first, later, foreign = (Key.make(tmp_path, name) for name in ("first", "later", "foreign"))
    kept = add_key(hub, "alice", first)
    add_key(hub, "bob", foreign)
    assert kept.fingerprint == first.fingerprint, "as ssh-keygen shows it"
    hub.start_server("alice", {"ports": ["ssh"], "gpus": 1, "gpu_model": A100})
    me = hub.service("workspaces", "api/me", token=hub.token_of("alice")).json()
    (way,) = next(one["run"]["access"] for one in me["environments"] if one["run"])
    hub.until(lambda: first.login(way["command"], "true").returncode == 0, "the node port leads there", seconds=20)
    said = first.login(way["command"], "echo $REMOTEGPU_WORKSPACE $CUDA_DEVICE_ORDER; id -un; ls ~/.ssh").stdout.split()
    assert said[:3] == ["lab", "PCI_BUS_ID", "jovyan"]
    assert "remotegpu_host_ed25519_key" in said, "clients know the host again"
    tty = first.login(way["command"].replace("ssh ", "ssh -tt "), "tty")
    assert tty.stdout.startswith("/dev/pts/"), tty.stderr
    for refused in (foreign, later):
        assert "Permission denied (publickey)" in refused.login(way["command"], "true").stderr

    add_key(hub, "alice", later)
    hub.until(lambda: later.login(way["command"], "true").returncode == 0, "a later key is let in", seconds=90)
    with begin(hub.engine) as session:
        alice = users.current(session, name="alice")
        keys.remove(session, user=alice, key_id=kept.id, actor=ADMIN, now=hub.world.now)
    hub.until(lambda: first.login(way["command"], "true").returncode != 0, "a removed key is not", seconds=90)
    assert later.login(way["command"], "true").returncode == 0

    hub.stop_server("alice")
    assert hub.kube(lambda kube: kube.list(CONFIG_MAPS, hub.namespace, labels=f"{HUB_LABEL}={hub.hub_id}")).items == []
    hub.start_server("alice", {"ports": ["ssh"]})
    again = later.login(way["command"], "true")
    assert again.returncode == 0, f"the same host: {again.stderr}"


def foreign_pod(gpus: int) -> dict[str, Any]:
    return {
        "metadata": {"name": f"foreign-{gpus}"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "c", "image": "localhost/pause:3", "imagePullPolicy": "Never",
                    "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
                }
            ],
        },
    }  # fmt: skip


def test_what_pods_of_others_hold_cannot_be_had(hub: KubeHub):
    pod = foreign_pod(7)
    hub.kube(lambda kube: kube.create(PODS, pod, hub.namespace))
    try:
        hub.until(lambda: hub.free() == 1, "the others' GPUs are subtracted")
        answer = hub.ask("alice", {"workspace": "lab", "image": hub.image("plain"), "gpus": 2, "gpu_model": A100})
        assert answer.status_code == 409
        assert "1 of 1" in answer.text
        hub.start_server("alice", {"gpus": 1, "gpu_model": A100})
    finally:
        hub.kube(lambda kube: kube.delete(PODS, pod["metadata"]["name"], hub.namespace, grace=0))
    hub.stop_server("alice")
    hub.until(lambda: hub.free() == 8, "they are given back")


def test_a_cordoned_node_takes_nothing_new_and_keeps_what_runs(hub: KubeHub):
    hub.start_server("alice")
    hub.kube(lambda kube: kube.patch(NODES, NODE, {"spec": {"unschedulable": True}}))
    try:
        hub.until(lambda: hub.host_status() == "offline", "the cordon is seen")
        answer = hub.ask("bob", {"workspace": "lab", "image": hub.image("plain")})
        assert answer.status_code == 409
        assert "offline" in answer.text
        assert hub.reconcile() == []
        assert hub.model("alice")["ready"]
    finally:
        hub.kube(lambda kube: kube.patch(NODES, NODE, {"spec": {"unschedulable": None}}))
    hub.until(lambda: hub.host_status() == "online", "it is back")


def test_a_hub_killed_while_it_starts_one_leaks_nothing(hub: KubeHub):
    hub.ask("alice", {"workspace": "lab", "image": hub.image("mute"), "gpus": 1, "gpu_model": A100})
    hub.until(lambda: any(pod["status"]["phase"] == "Running" for pod in hub.pods()), "the pod runs")
    hub.restart(killed=True)
    graces = set()

    def undone() -> bool:
        left = hub.pods()
        graces.update(pod["metadata"].get("deletionGracePeriodSeconds") for pod in left)
        return not left and not hub.open_runs()

    hub.until(undone, "the start is undone")
    assert graces <= {None, 1}, "with the grace of the hub's configuration, where it was seen going"
    assert hub.run_of("alice").state == AllocationState.ENDED


def test_a_running_environment_outlives_its_hub_and_the_end_of_another_test_cluster(hub: KubeHub, tmp_path: Path):
    hub.start_server("alice", {"gpus": 1, "gpu_model": A100})
    uid = hub.pod_of("alice")["metadata"]["uid"]
    hub.restart(killed=True)
    hub.until(lambda: hub.model("alice").get("ready"), "the hub knows it again")
    assert hub.reconcile() == []
    assert hub.pod_of("alice")["metadata"]["uid"] == uid
    subprocess.run([HERE / "down.sh"], env={**os.environ, "STATE": str(tmp_path), "API_PORT": "1"}, check=True)
    over = time.time()
    hub.until(lambda: hub.life(hub.run_of("alice").id).ended > over, "its process goes on", seconds=5)


@pytest.fixture
def frozen_api(test_cluster: LocalCluster) -> Iterator[int]:
    """Stop the API server by a signal; it goes on at the end of the test at the latest."""
    pid = test_cluster.pid("apiserver")
    yield pid
    os.kill(pid, signal.SIGCONT)


HOW_LONG = [pytest.param(8, id="for a while"), pytest.param(20, id="for 20 s", marks=pytest.mark.prove)]


@pytest.mark.parametrize("seconds", HOW_LONG)
def test_a_stop_while_the_api_server_is_away_gives_nothing_back_before_the_pod_is_gone(
    hub: KubeHub, frozen_api: int, seconds: int
):
    hub.start_server("alice", {"gpus": 1, "gpu_model": A100})
    os.kill(frozen_api, signal.SIGSTOP)
    back_at = time.monotonic() + seconds
    try:
        hub.api("DELETE", hub.path("alice"), timeout_seconds=60)
        time.sleep(max(8, back_at - time.monotonic()))
        assert hub.run_of("alice").state != AllocationState.ENDED, "the pod may run"
    finally:
        os.kill(frozen_api, signal.SIGCONT)
    hub.until_free("alice", seconds=120)
    assert hub.run_of("alice").end_reason == EndReason.USER


@pytest.mark.parametrize("seconds", HOW_LONG)
def test_a_start_waits_for_an_api_server_that_is_away_for_a_while(hub: KubeHub, frozen_api: int, seconds: int):
    os.kill(frozen_api, signal.SIGSTOP)
    back_at = time.monotonic() + seconds
    answer = hub.ask("alice", {"workspace": "lab", "image": hub.image("plain"), "gpus": 1, "gpu_model": A100})
    assert answer.status_code == 202, "it is on its way"
    time.sleep(max(0, back_at - time.monotonic()))
    assert hub.model("alice")["pending"] == "spawn"
    os.kill(frozen_api, signal.SIGCONT)
    hub.until(lambda: hub.model("alice").get("ready"), "it runs after all", seconds=90)
    assert len(hub.pods()) == 1


def test_what_runs_on_a_silent_node_is_neither_ended_nor_billed(hub: KubeHub, test_cluster: LocalCluster):
    hub.start_server("alice", {"gpus": 1, "gpu_model": A100})
    kubelet = test_cluster.pid("kubelet")
    os.kill(kubelet, signal.SIGSTOP)
    try:
        hub.until(lambda: hub.host_status() == "offline", "the node is silent", seconds=120)
        hub.reconcile()
        seen_at = hub.run_of("alice").seen_at
        time.sleep(2)
        assert hub.reconcile() == []
        assert hub.run_of("alice").seen_at == seen_at, "nobody saw it run"
        assert hub.run_of("alice").state == AllocationState.ACTIVE
    finally:
        os.kill(kubelet, signal.SIGCONT)
    hub.until(lambda: hub.host_status() == "online", "the node is back", seconds=60)
    hub.reconcile()
    assert hub.run_of("alice").seen_at > seen_at, "it ran all the time"


def test_an_api_server_that_is_away_when_the_hub_starts_ends_nothing(hub: KubeHub, frozen_api: int):
    hub.start_server("alice", {"gpus": 1, "gpu_model": A100})
    uid = hub.pod_of("alice")["metadata"]["uid"]
    hub.kill()
    os.kill(frozen_api, signal.SIGSTOP)
    try:
        hub.begin()
        hub.wait_ready(120)
        time.sleep(3)
    finally:
        os.kill(frozen_api, signal.SIGCONT)
    hub.until(lambda: hub.model("alice").get("ready"), "the hub knows it", seconds=60)
    assert hub.pod_of("alice")["metadata"]["uid"] == uid
    assert hub.run_of("alice").state == AllocationState.ACTIVE


INGRESS = 'c.RemoteGPU.ingress = {"host": "{service}-{run}.gpu.example.org", "tls_secret": "wildcard"}'


def at_ingress(hub: KubeHub) -> list[dict[str, Any]]:
    labels = f"{HUB_LABEL}={hub.hub_id}"
    found: list[dict[str, Any]] = hub.kube(lambda kube: kube.list(INGRESSES, hub.namespace, labels=labels)).items
    return found


def test_two_hubs_on_one_cluster_leave_each_other_alone(hub: KubeHub, test_cluster: LocalCluster, tmp_path: Path):
    hub.start_server("alice", {"gpus": 1, "gpu_model": A100})
    with KubeHub(tmp_path / "other", test_cluster, INGRESS, namespace=hub.namespace) as other:
        other.until(lambda: other.free() == 7, "the first hub's GPU is somebody else's")
        other.start_server("alice", {"gpus": 1, "gpu_model": A100, "ports": ["tensorboard"]})
        assert other.reconcile() == hub.reconcile() == []
        (way,) = at_ingress(other)
        (rule,) = way["spec"]["rules"]
        assert rule["host"] == f"tensorboard-{other.run_of('alice').id}.gpu.example.org"
        assert rule["host"] in (other.run_of("alice").ports[0].url or "")
        other.stop_server("alice")
        assert at_ingress(other) == [], "given back with the run"
        assert hub.model("alice")["ready"]
