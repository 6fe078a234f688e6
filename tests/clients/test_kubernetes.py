"""The client against a real API server, the tester's own (KUBECONFIG) or that of `test_cluster`, and against one that
answers wrong, late, half or not at all."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import kubernetes.aio
import kubernetes_asyncio
import pytest
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from remotegpu_hub.clients import kubernetes as ours
from remotegpu_hub.clients.kubernetes import CONFIG_MAPS, PODS, Kind, Kubernetes, Mirror
from remotegpu_hub.errors import Conflict, Denied, Invalid, NotFound, Unavailable
from tests.cluster.faults import Fault, Front

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
    with pytest.raises(Conflict, match="not this hub's"):
        await kube.ensure(CONFIG_MAPS, note("a", run="2"), space, labels={"run": "2"})


async def test_what_has_not_begun_has_no_logs_and_what_is_not_there_is_not_found(kube: Kubernetes, space: str) -> None:
    body = {"metadata": {"name": "p"}, "spec": {"schedulerName": "nobody", "automountServiceAccountToken": False,
                                                "containers": [{"name": "c", "image": "localhost/pause:3"}]}}  # fmt: skip
    async with asyncio.timeout(30):
        while True:  # until the namespace has its service account
            try:
                await kube.create(PODS, body, space)
                break
            except Denied:
                await asyncio.sleep(0.2)
    assert [line async for line in kube.logs("p", space, tail=5, since_seconds=60)] == []
    with pytest.raises(NotFound):
        _ = [line async for line in kube.logs("none", space, follow=True)]
    assert await kube.delete(PODS, "p", space, grace=0) is True


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
