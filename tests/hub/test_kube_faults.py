"""A hub whose API server answers wrong, late or not at all, and a registry that is down."""

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from remotegpu_hub import workers
from remotegpu_hub.clients.kubernetes import NODES, PODS
from remotegpu_hub.clients.nodes import is_ready
from remotegpu_hub.db import begin
from remotegpu_hub.domain import keys, users, volumes
from remotegpu_hub.orm import AllocationState, EndReason, EnvironmentState, Volume
from tests.cluster.cluster import NODE, LocalCluster
from tests.cluster.faults import Fault, Front
from tests.hubs import ROOT
from tests.kube_hubs import A100, KubeHub
from tests.worlds import ADMIN

ONE_GPU = {"gpus": 1, "gpu_model": A100}


class FrontedHub(KubeHub):
    """Its way to the API server leads through a front that can be told to answer wrong."""

    front: Front

    def _write_kubeconfig(self, token: str) -> None:
        if "front" not in vars(self):
            super()._write_kubeconfig(token)
            self.direct = self.kubeconfig.rename(self.folder / "direct")
            self.front = in_thread(Front(str(self.direct), self.folder))

    def tell(self, *faults: Fault) -> None:
        self.front.faults.extend(faults)

    def asked(self, method: str, part: str) -> int:
        return sum(one.startswith(f"{method} ") and part in one for one in self.front.asked)


def in_thread(front: Front) -> Front:
    """Let it answer in a thread of its own until the process ends."""
    ready = threading.Event()

    async def serve() -> None:
        async with front.running():
            ready.set()
            await asyncio.Event().wait()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    assert ready.wait(30)
    return front


@pytest.fixture(scope="module")
def hub(test_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontedHub]:
    with FrontedHub(tmp_path_factory.mktemp("kube-faults"), test_cluster) as running:
        node = lambda: running.kube(lambda kube: kube.get(NODES, NODE))  # noqa: E731
        running.until(lambda: is_ready(node()) and not node()["spec"].get("taints"), "the node takes pods")
        yield running


@pytest.fixture(autouse=True)
def nothing_left(hub: FrontedHub) -> Iterator[None]:
    yield
    hub.front.away = False
    hub.front.faults.clear()
    hub.stop_all()
    hub.check()


def test_a_start_and_a_stop_get_through_wrong_answers(hub: FrontedHub):
    pods = f"/namespaces/{hub.namespace}/pods"
    hub.tell(
        *(Fault(status=status, method="POST", part=pods) for status in (500, 409)),
        Fault(status=429, method="POST", part=pods, headers={"Retry-After": "1"}),
        Fault(lost=True, method="POST", part=pods),
        Fault(gone=True, part="watch=true"),
    )
    hub.start_server("alice", ONE_GPU)
    assert not [fault for fault in hub.front.faults if fault.method == "POST"], "all of them were met"
    assert hub.asked("POST", pods) >= 5
    assert len(hub.pods()) == 1
    hub.tell(
        *(Fault(status=status, method="DELETE", part=pods) for status in (500, 429)),
        Fault(lost=True, method="DELETE", part=pods),
    )
    hub.stop_server("alice")
    assert not [fault for fault in hub.front.faults if fault.method == "DELETE"], "all of them were met"
    run = hub.run_of("alice")
    assert (run.end_reason, run.environment.state) == (EndReason.USER, EnvironmentState.STOPPED)
    assert hub.pods() == []


def test_a_start_that_the_api_server_never_takes_is_told_and_holds_nothing(hub: FrontedHub):
    pods = f"/namespaces/{hub.namespace}/pods"
    hub.tell(*(Fault(status=500, method="POST", part=pods) for _ in range(40)))
    hub.ask("alice", {"workspace": "lab", "image": hub.image("plain"), **ONE_GPU})
    hub.until_free("alice")
    run = hub.run_of("alice")
    assert run.environment.state == EnvironmentState.ERROR
    assert "500" in run.environment.message
    assert run.started_at is None, "nothing is billed"
    hub.front.faults.clear()
    hub.start_server("alice", ONE_GPU)


def test_a_watch_that_falls_silent_hides_no_end(hub: FrontedHub):
    hub.tell(*(Fault(mute=True, part="watch=true") for _ in range(4)))
    hub.start_server("alice", ONE_GPU)
    hub.stop_server("alice")
    assert hub.pods() == []


def test_a_first_list_that_fails_when_the_hub_starts_ends_nothing(hub: FrontedHub):
    hub.start_server("alice", ONE_GPU)
    uid = hub.pod_of("alice")["metadata"]["uid"]
    hub.kill()
    first = Fault(status=500, method="GET", part="labelSelector=component")
    hub.tell(first)
    hub.begin()
    hub.wait_ready()
    hub.until(lambda: first not in hub.front.faults, "the list failed")
    time.sleep(5)  # some polls
    assert hub.model("alice")["ready"]
    assert hub.pod_of("alice")["metadata"]["uid"] == uid
    hub.stop_server("alice")
    assert hub.run_of("alice").end_reason == EndReason.USER


@pytest.mark.prove
def test_minutes_without_the_api_server_end_nothing_and_then_all_is_seen_again(hub: FrontedHub):
    hub.start_server("alice", ONE_GPU)
    uid = hub.pod_of("alice")["metadata"]["uid"]
    before = hub.log_text().count("never recovered, giving up")
    hub.front.away = True
    hub.until(lambda: hub.log_text().count("never recovered, giving up") > before, "KubeSpawner's watch gave up")
    time.sleep(15)
    hub.front.away = False
    time.sleep(15)
    assert hub.model("alice")["ready"]
    assert hub.pod_of("alice")["metadata"]["uid"] == uid
    assert hub.run_of("alice").state == AllocationState.ACTIVE
    hub.start_server("bob")
    hub.stop_server("alice")
    assert hub.run_of("alice").end_reason == EndReason.USER
    name = hub.pod_of("bob")["metadata"]["name"]
    hub.kube(lambda kube: kube.delete(PODS, name, hub.namespace, grace=1))
    hub.until_free("bob")
    assert hub.run_of("bob").end_reason == EndReason.POD_DELETED


def test_after_a_restart_every_run_is_known_and_a_stop_is_its_users(hub: FrontedHub):
    for user in ("alice", "bob"):
        hub.start_server(user)
    hub.restart(killed=True)
    for user in ("alice", "bob"):
        hub.until(lambda user=user: hub.model(user).get("ready"), "the hub knows it again")
        hub.stop_server(user)
        run = hub.run_of(user)
        assert (run.end_reason, run.environment.state) == (EndReason.USER, EnvironmentState.STOPPED)


Right = tuple[str, str, str]
"""`cluster` or `namespace`, what, and the verb."""
SELDOM: set[Right] = {
    *(("namespace", "ingresses", verb) for verb in ("get", "create", "delete")),  # with `c.RemoteGPU.ingress`
    *(("namespace", "resourceclaimtemplates", verb) for verb in ("get", "list", "create", "delete")),  # with DRA
    ("cluster", "resourceslices", "list"),
    *(("namespace", what, "delete") for what in ("services", "configmaps")),  # the cluster's collector may be quicker
    ("namespace", "persistentvolumeclaims", "patch"),  # when a volume grows
}


def allowed() -> set[Right]:
    rules = yaml.safe_load_all((ROOT / "docs" / "kubernetes-rbac.yaml").read_text())
    return {
        ("cluster" if one["kind"] == "ClusterRole" else "namespace", what, verb)
        for one in rules
        if one["kind"] in ("Role", "ClusterRole")
        for rule in one["rules"]
        for what in rule["resources"]
        for verb in rule["verbs"]
    }


def right_of(asked: str) -> Right:
    """What a request needs, such as `GET /api/v1/namespaces/NS/pods/NAME/log`."""
    method, _, address = asked.partition(" ")
    path, _, query = address.partition("?")
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    scope = "namespace" if rest[0] == "namespaces" else "cluster"
    what, *name = rest[2:] if scope == "namespace" else rest
    reading = "watch" if "watch=true" in query.lower() else "get" if name else "list"
    verb = {"GET": reading, "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
    return scope, "/".join([what, *name[1:]]), verb


def test_the_hub_has_every_right_that_it_uses_and_no_other(hub: FrontedHub, tmp_path: Path):
    lost = [Fault(lost=True, method="POST", part=f"{hub.namespace}/{kind}") for kind in ("services", "configmaps")]
    hub.tell(*lost)
    hub.start_server("alice", {**ONE_GPU, "ports": ["ssh"]})
    run = hub.run_of("alice")
    log = hub.service("workspaces", f"api/environments/{run.environment_id}/logs", token=hub.token_of("alice"))
    assert log.status_code == 200, log.text
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    with begin(hub.engine) as session:
        alice = users.current(session, name="alice")
        keys.add(session, user=alice, text=(tmp_path / "key.pub").read_text(), actor=ADMIN, now=hub.world.now)
    hub.with_site(lambda site: workers.sync(hub.runtime, site))
    hub.start_server("bob")
    hub.stop_server("bob")
    name = hub.pod_of("alice")["metadata"]["name"]
    hub.kube(lambda kube: kube.delete(PODS, name, hub.namespace, grace=0))  # so that it looks why and at its node
    hub.until_free("alice")
    with begin(hub.engine) as session:
        for volume in session.query(Volume).filter_by(user_id=run.user_id, deleted_at=None):
            volumes.delete(session, volume_id=volume.id, actor=ADMIN, now=hub.world.now)
    hub.reconcile()
    used = {right_of(one) for one in hub.front.asked}
    assert used - allowed() == set(), "all that it asked for stands in the rules"
    assert allowed() - used - SELDOM == set(), "and the rules hold nothing that it never asks for"


@pytest.fixture
def registry_down(test_cluster: LocalCluster) -> Iterator[None]:
    pid = test_cluster.pid("registry")
    words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    os.kill(pid, signal.SIGKILL)
    yield
    with (test_cluster.state / "registry.log").open("ab") as log:
        again = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    (test_cluster.state / "registry.pid").write_text(str(again.pid))
    wait(lambda: test_cluster.digest_of("library/base:1.0"))


def wait(work: Callable[[], Any], tries: int = 100) -> None:
    for _ in range(tries):
        try:
            work()
        except OSError:
            threading.Event().wait(0.1)
        else:
            return
    work()


@pytest.mark.usefixtures("registry_down")
def test_a_registry_that_is_down_stops_only_what_is_not_there_yet(hub: FrontedHub):
    hub.ask("alice", {"workspace": "lab", "image": hub.image("missing"), **ONE_GPU})
    hub.until_free("alice")
    run = hub.run_of("alice")
    assert (run.end_reason, run.environment.state) == (EndReason.IMAGE_PULL_FAILED, EnvironmentState.ERROR)
    assert "connection refused" in run.environment.message
    assert run.started_at is None, "nothing is billed"
    hub.start_server("bob", ONE_GPU)
