"""The client against a real API server, the tester's own (KUBECONFIG) or that of `test_cluster`, and against one that
answers wrong, late, half or not at all."""

import asyncio
import datetime
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import kubernetes.aio
import kubernetes_asyncio
import pytest
import yaml
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from remotegpu_hub.clients import kubernetes as ours
from remotegpu_hub.clients.kubernetes import CONFIG_MAPS, PODS, SERVICES, Kind, Kubernetes, Mirror
from remotegpu_hub.errors import Conflict, Denied, Invalid, NotFound, Unavailable
from tests.cluster.cluster import current
from tests.cluster.faults import Fault, Front, pem

NAMESPACES = Kind("api/v1", "namespaces", namespaced=False)
LIBRARIES = [
    pytest.param(kubernetes_asyncio, id="kubernetes_asyncio, as in the hub"),
    pytest.param(kubernetes.aio, id="kubernetes.aio, as in the services"),
]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
async def front(api_server: str, tmp_path: Path) -> AsyncIterator[Front]:
    async with Front(api_server, tmp_path).running() as running:
        yield running


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


@pytest.fixture
async def kube(front: Front, library: ModuleType) -> AsyncIterator[Kubernetes]:
    made = await Kubernetes.connect(library, kubeconfig=front.kubeconfig, timeout_seconds=5)
    yield made
    await made.close()


@pytest.fixture
async def space(kube: Kubernetes) -> AsyncIterator[str]:
    name = f"client-{uuid4().hex[:8]}"
    await kube.create(NAMESPACES, {"metadata": {"name": name}})
    yield name
    await kube.delete(NAMESPACES, name)


def note(name: str, text: str = "x", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "data": {"text": text}}


async def names(kube: Kubernetes, space: str, **given: str) -> set[str]:
    found = {one["metadata"]["name"] for one in (await kube.list(CONFIG_MAPS, space, **given)).items}
    return found - {"kube-root-ca.crt"}


async def test_an_object_is_made_read_changed_and_removed(kube: Kubernetes, space: str) -> None:
    made = await kube.create(CONFIG_MAPS, note("a", team="blue"), space)
    assert (await kube.get(CONFIG_MAPS, "a", space))["metadata"]["uid"] == made["metadata"]["uid"]
    assert (await kube.patch(CONFIG_MAPS, "a", {"data": {"text": "y"}}, space))["data"] == {"text": "y"}
    await kube.create(CONFIG_MAPS, note("b"), space)
    assert await names(kube, space, labels="team=blue") == {"a"}
    assert await names(kube, space, fields="metadata.name=b") == {"b"}
    assert await kube.delete(CONFIG_MAPS, "a", space, uid="another") is False, (
        "another object of that name is left alone"
    )
    assert await kube.delete(CONFIG_MAPS, "a", space, uid=made["metadata"]["uid"]) is True
    assert await kube.delete(CONFIG_MAPS, "a", space) is False
    assert await names(kube, space) == {"b"}


async def test_errors_are_ours_and_say_what_to_do(front: Front, kube: Kubernetes, space: str) -> None:
    with pytest.raises(NotFound):
        await kube.get(CONFIG_MAPS, "none", space)
    await kube.create(CONFIG_MAPS, note("a"), space)
    with pytest.raises(Conflict, match="already exists"):
        await kube.create(CONFIG_MAPS, note("a"), space)
    with pytest.raises(Invalid, match="a lowercase RFC 1123 subdomain"):
        await kube.create(CONFIG_MAPS, note("Not A Name"), space)
    for status, kind, told in ((401, Denied, "does not know this hub"), (403, Denied, "docs/kubernetes.md"),
                               (418, ours.RemoteGPUError, "418")):  # fmt: skip
        front.faults.append(Fault(status=status))
        with pytest.raises(kind, match=told):
            await kube.get(CONFIG_MAPS, "a", space)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('pods "p" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes', Conflict),
        ('admission webhook "policies.example.org" denied the request: no registry but ours', Conflict),
        ('pods "p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=2', Conflict),
        ('pods "p" is forbidden: failed quota: all: must specify limits.cpu', Conflict),
        ('pods "p" is forbidden: status unknown for quota: gpus, resources: requests.nvidia.com/gpu', Unavailable),
        (
            'pods is forbidden: User "hub" cannot create resource "pods" in API group "" in the namespace "quota-a"',
            Denied,
        ),
    ],
    ids=[
        "pod security",
        "a webhook",
        "exceeded",
        "failed",
        "not counted yet",
        "a right that is lacking in a namespace of that name",
    ],
)
async def test_a_rule_of_the_cluster_is_told_from_a_right_that_is_lacking(
    front: Front, kube: Kubernetes, said: str, kind: type[Exception]
) -> None:
    front.faults.append(Fault(status=403, said=said))
    with pytest.raises(kind, match=re.escape(said)):
        await kube.create(CONFIG_MAPS, note("a"), "default")


@pytest.mark.parametrize(
    "fault",
    [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=500), Fault(status=503), Fault(lost=True),
     Fault(status=500, half=True)],
    ids=["429", "500", "503", "a lost answer", "half of a 500"],
)  # fmt: skip
async def test_a_read_is_tried_again(front: Front, kube: Kubernetes, space: str, fault: Fault) -> None:
    await kube.create(CONFIG_MAPS, note("a"), space)
    front.faults.append(fault)
    assert (await kube.get(CONFIG_MAPS, "a", space))["data"] == {"text": "x"}
    assert not front.faults


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited each time; here nobody does."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(ours, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return found


async def test_who_is_told_to_wait_waits_as_long_with_reads_with_making_and_with_watches(
    front: Front, kube: Kubernetes, space: str, waits: list[float]
) -> None:
    def busy(**where: str) -> Fault:
        return Fault(status=429, headers={"Retry-After": "7"}, **where)

    def lasted() -> list[int]:
        found = [int(seconds) for seconds in waits]
        waits.clear()
        return found

    front.faults.append(busy(method="POST"))
    await kube.ensure(CONFIG_MAPS, note("a"), space, labels={})
    assert lasted() == [7]
    front.faults.append(busy(method="GET"))
    await kube.get(CONFIG_MAPS, "a", space)
    assert lasted() == [7]
    front.faults.append(busy(part="watch="))
    async with Followed(kube, space) as followed:
        await kube.create(CONFIG_MAPS, note("b"), space)
        await followed.until({"a": "x", "b": "x"})
    assert lasted() == [7]


async def test_a_read_gives_up_in_the_end(front: Front, kube: Kubernetes, space: str) -> None:
    front.faults.extend(Fault(status=503) for _ in range(ours.TRIES))
    with pytest.raises(Unavailable, match="a test says 503"):
        await kube.get(CONFIG_MAPS, "a", space)


async def test_nobody_there_and_nobody_answering_are_told(front: Front, library: ModuleType, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    front.write_kubeconfig(nowhere, port=9)
    kube = await Kubernetes.connect(library, kubeconfig=str(nowhere))
    with pytest.raises(Unavailable, match="cannot be reached"):
        await kube.get(CONFIG_MAPS, "a", "default")
    await kube.close()
    with pytest.raises(Unavailable, match="KUBECONFIG"):
        await Kubernetes.connect(library, kubeconfig=str(tmp_path / "missing"))


async def test_a_context_is_the_one_that_is_named_else_the_current_one(
    front: Front, library: ModuleType, tmp_path: Path
) -> None:
    given = current(front.kubeconfig)
    given["clusters"].append({"name": "far", "cluster": {"server": "http://127.0.0.1:9"}})
    given["contexts"].append({"name": "away", "context": {"cluster": "far", "user": "u"}})
    given["current-context"] = "away"
    both = tmp_path / "both"
    both.write_text(yaml.safe_dump(given))
    kube = await Kubernetes.connect(library, kubeconfig=str(both), context="c")
    assert await names(kube, "default") is not None
    await kube.close()
    kube = await Kubernetes.connect(library, kubeconfig=str(both))
    with pytest.raises(Unavailable, match="cannot be reached"):
        await names(kube, "default")
    await kube.close()
    with pytest.raises(Unavailable, match="No cluster is configured"):
        await Kubernetes.connect(library, kubeconfig=str(both), context="nowhere")


async def test_inside_a_cluster_the_pods_own_account_is_used_and_its_token_read_again(
    api_server: str, kube: Kubernetes, space: str, library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = Kind("api/v1", "serviceaccounts")
    await kube.create(accounts, {"metadata": {"name": "own"}}, space)  # `default` comes where there are controllers
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await kube._json("POST", accounts.path(space, "own", "token"), body=asked))["status"]["token"]
    cluster = current(api_server)["clusters"][0]["cluster"]
    files = {"TOKEN": tmp_path / "token", "CERT": tmp_path / "ca.crt"}
    files["TOKEN"].write_text("old")
    files["CERT"].write_text(pem(cluster, "certificate-authority"))
    for name, file in files.items():
        monkeypatch.setattr(library.config.incluster_config, f"SERVICE_{name}_FILENAME", str(file))
    server = urlsplit(cluster["server"])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.hostname or "")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    inside = await Kubernetes.connect(library)
    try:
        with pytest.raises(Denied, match="does not know this hub"):
            await inside.get(CONFIG_MAPS, "a", space)
        files["TOKEN"].write_text(token)
        now = datetime.datetime.now() + datetime.timedelta(minutes=5)  # noqa: DTZ005 - as the library does
        monkeypatch.setattr(library.config.incluster_config, "datetime", _At(now))
        with pytest.raises(Denied, match=f"system:serviceaccount:{space}:own"):
            await inside.get(CONFIG_MAPS, "a", space)
    finally:
        await inside.close()


class _At:
    """The module datetime, at another time."""

    timedelta = datetime.timedelta

    def __init__(self, now: datetime.datetime) -> None:
        self.datetime = SimpleNamespace(now=lambda: now)


async def test_a_list_of_several_pages_is_whole_and_begins_anew_when_its_rest_is_gone(
    front: Front, kube: Kubernetes, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {f"n{number}" for number in range(7)}
    for name in wanted:
        await kube.create(CONFIG_MAPS, note(name), space)
    monkeypatch.setattr(ours, "PAGE", 3)
    assert await names(kube, space) == wanted
    front.faults.append(Fault(status=410, part="continue="))
    assert await names(kube, space) == wanted
    assert not front.faults
    front.faults.extend(Fault(status=410, part="continue=") for _ in range(ours.TRIES))
    with pytest.raises(Unavailable, match="changes faster"):
        await kube.list(CONFIG_MAPS, space)


async def test_making_for_certain_makes_exactly_one(front: Front, kube: Kubernetes, space: str) -> None:
    front.faults.extend([Fault(lost=True, method="POST"), Fault(status=500, method="POST")])
    made = await kube.ensure(CONFIG_MAPS, note("a", run="1"), space, labels={"run": "1"})
    again = await kube.ensure(CONFIG_MAPS, note("a", run="1"), space, labels={"run": "1"})
    assert made["metadata"]["uid"] == again["metadata"]["uid"]
    assert await names(kube, space) == {"a"}
    with pytest.raises(Conflict, match="of something else"):
        await kube.ensure(CONFIG_MAPS, note("a", run="2"), space, labels={"run": "2"})


async def test_a_node_port_whose_answer_was_lost_is_found_again(front: Front, kube: Kubernetes, space: str) -> None:
    ports = [{"port": 80, "nodePort": 31999}]
    body = {"metadata": {"name": "s", "labels": {"run": "1"}}, "spec": {"type": "NodePort", "ports": ports}}
    front.faults.append(Fault(lost=True, method="POST"))
    made = await kube.ensure(SERVICES, body, space, labels={"run": "1"})
    assert made["spec"]["ports"][0]["nodePort"] == 31999
    other = {**body, "metadata": {"name": "other"}}
    with pytest.raises(Invalid, match="already allocated"):
        await kube.ensure(SERVICES, other, space, labels={})
    await kube.delete(SERVICES, "s", space)  # the port is the whole cluster's


async def test_what_has_not_begun_has_no_logs_and_what_is_not_there_is_not_found(
    front: Front, kube: Kubernetes, space: str
) -> None:
    body = {"metadata": {"name": "p"}, "spec": {"schedulerName": "nobody", "automountServiceAccountToken": False,
                                                "containers": [{"name": "c", "image": "localhost/pause:3"}]}}  # fmt: skip
    async with asyncio.timeout(30):
        while True:  # until the namespace has its service account
            try:
                await kube.create(PODS, body, space)
                break
            except Denied:
                await asyncio.sleep(0.2)
    since = datetime.datetime(2026, 11, 1, 8, tzinfo=datetime.timezone(datetime.timedelta(hours=8)))
    assert [line async for line in kube.logs("p", space, tail=5, since=since)] == []
    assert any("/log?tailLines=5&sinceTime=2026-11-01T00:00:00Z" in unquote(one) for one in front.asked)
    with pytest.raises(NotFound):
        _ = [line async for line in kube.logs("none", space, follow=True)]
    assert await kube.delete(PODS, "p", space, grace=0) is True


@pytest.mark.parametrize(("status", "lines"), [(200, ["the first line"]), (404, [])], ids=["a log", "a refusal"])
async def test_a_log_that_breaks_off_is_told_as_ours(
    front: Front, kube: Kubernetes, status: int, lines: list[str]
) -> None:
    front.faults.append(Fault(broken=True, as_status=status))
    seen = []
    with pytest.raises(Unavailable, match="broke off"):
        async for line in kube.logs("p", "default"):
            seen.append(line)
    assert seen == lines


class Followed:
    """A mirror that follows while the test looks."""

    def __init__(self, kube: Kubernetes, space: str) -> None:
        self.news: list[tuple[str | None, str | None]] = []
        self.mirror = Mirror(
            kube, CONFIG_MAPS, lambda thing: (thing.get("data") or {}).get("text"), namespace=space,
            changed=lambda before, after: self.news.append((before, after)),
        )  # fmt: skip

    async def __aenter__(self) -> "Followed":
        self.task = asyncio.ensure_future(self.mirror.follow())
        await asyncio.wait_for(self.mirror.ready.wait(), 20)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.task.cancel()

    async def until(self, wanted: dict[str, str]) -> None:
        async with asyncio.timeout(30):
            while {key.split("/")[1]: text for key, text in self.mirror.objects.items()} != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_mirror_follows_what_is_made_changed_and_removed(kube: Kubernetes, space: str) -> None:
    await kube.create(CONFIG_MAPS, note("a"), space)
    async with Followed(kube, space) as followed:
        await followed.until({"a": "x"})
        await kube.create(CONFIG_MAPS, note("b"), space)
        await kube.patch(CONFIG_MAPS, "a", {"data": {"text": "y"}}, space)
        await followed.until({"a": "y", "b": "x"})
        await kube.delete(CONFIG_MAPS, "a", space)
        await followed.until({"b": "x"})
        assert followed.news == [(None, None), (None, "x"), ("x", "y"), ("y", None)]


@pytest.mark.parametrize(
    "fault",
    [Fault(status=410, part="watch="), Fault(gone=True, part="watch="), Fault(status=500, part="watch="),
     Fault(mute=True, part="watch="), Fault(lost=True, part="watch="), Fault(status=500, half=True, part="watch=")],
    ids=["410", "an event that says 410", "500", "a watch that dies silently", "a connection that breaks",
         "half of a 500"],
)  # fmt: skip
async def test_a_mirror_goes_on_where_its_watch_broke_off(
    front: Front, kube: Kubernetes, space: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "WATCH_SECONDS", 2)
    monkeypatch.setattr(ours, "SILENCE_SECONDS", 1)
    front.faults.append(fault)
    async with Followed(kube, space) as followed:
        async with asyncio.timeout(20):
            while front.faults:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await kube.create(CONFIG_MAPS, note("a"), space)
        await kube.create(CONFIG_MAPS, note("b"), space)
        await followed.until({"a": "x", "b": "x"})


async def test_a_mirror_goes_on_after_what_nobody_foresaw(
    kube: Kubernetes, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Followed(kube, space) as followed:
        keep, broken = followed.mirror._keep, [ValueError("a test says so")]

        def breaks_once(thing: dict[str, Any]) -> str | None:
            if broken:
                raise broken.pop()
            return keep(thing)

        monkeypatch.setattr(followed.mirror, "_keep", breaks_once)
        await kube.create(CONFIG_MAPS, note("a"), space)
        await kube.create(CONFIG_MAPS, note("b"), space)
        await followed.until({"a": "x", "b": "x"})
        assert not broken


async def test_credentials_that_cannot_be_had_are_told_and_asked_for_again(
    kube: Kubernetes, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kube.create(CONFIG_MAPS, note("a"), space)
    broken = [OSError("no token") for _ in range(ours.TRIES + 1)]
    configuration = kube._client.configuration
    settings = configuration.auth_settings

    async def now_and_then() -> Any:
        if broken:
            raise broken.pop()
        return await settings()

    monkeypatch.setattr(configuration, "auth_settings", now_and_then)
    with pytest.raises(Unavailable, match="no token"):
        await kube.get(CONFIG_MAPS, "a", space)
    assert (await kube.get(CONFIG_MAPS, "a", space))["data"] == {"text": "x"}


async def test_a_watch_tells_changes_as_they_come(kube: Kubernetes, space: str) -> None:
    version = (await kube.list(CONFIG_MAPS, space)).version
    await kube.create(CONFIG_MAPS, note("a"), space)
    async for change, thing in kube.watch(CONFIG_MAPS, version, space, fields="metadata.name=a"):
        assert (change, thing["data"]) == ("ADDED", json.loads('{"text": "x"}'))
        break
