"""Starts, by REST and by form, in a real hub: what is refused, what is given, what is kept."""

import asyncio
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text, update

from remotegpu_hub import workers
from remotegpu_hub.clients.hub import HubClient
from remotegpu_hub.db import begin
from remotegpu_hub.domain import workspaces
from remotegpu_hub.orm import AuditEntry, Deadline, EndReason, Environment, Role, Workspace
from tests.gpu_hubs import A100, GpuHub
from tests.hubs import xsrf_of

PEOPLE = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "kate", "mallory")

BEFORE = """
c.Spawner.environment.update({"CUDA_VISIBLE_DEVICES": "all", "NVIDIA_VISIBLE_DEVICES": "all", "OPERATOR": "yes"})
c.Spawner.env_keep = ["PATH", "LANG", "CUDA_VISIBLE_DEVICES"]
def hook(spawner):
    spawner.environment["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
    spawner.environment["REMOTEGPU_ALLOCATION_ID"] = "999"
    spawner.cmd = ["/bin/false"]
c.Spawner.pre_spawn_hook = hook
c.RemoteGPU.port_ranges = {"tensorboard": (30100, 30101)}
c.RemoteGPU.simulated_gpus.append({"model": "L4", "memory_mib": 24576, "count": 1, "shares": 2})
c.JupyterHub.load_roles = [{"name": "user", "scopes": ["self", "shares!user"]}]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuHub]:
    folder = tmp_path_factory.mktemp("hub")
    with GpuHub(folder, BEFORE, members=PEOPLE, environment={"CUDA_VISIBLE_DEVICES": "7"}) as running:
        running.world.workspace("secret", owner="mallory")
        running.world.price("gpu:L4/2", 60)
        yield running


@pytest.fixture(autouse=True)
def sound(hub: GpuHub) -> Iterator[None]:
    """After each test nothing may be left, and all sums must be right."""
    yield
    left = hub.stop_all()
    assert left == []
    hub.check()


def gpu(count: int = 1, **more: Any) -> dict[str, Any]:
    return {"workspace": "lab", "image": "local:plain", "gpu_model": A100, "gpus": count, **more}


def admission(hub: GpuHub, allocation_id: int) -> AuditEntry:
    return next(one for one in hub.world.audit("allocation.admit") if one.entity_id == allocation_id)


REFUSED: list[tuple[str, Any, int, str]] = [
    ("an unknown key", {"shell": "x"}, 400, "shell is not an option"),
    ("a trait of the spawner", {"cmd": ["/bin/sh"]}, 400, "cmd is not an option"),
    ("env vars", {"environment": {"CUDA_VISIBLE_DEVICES": "all"}}, 400, "environment is not an option"),
    ("a hostile key", {"<script>\n": 1}, 400, "?script?? is not an option"),
    ("gpus as text", {"gpu_model": A100, "gpus": "1"}, 400, "gpus must be a whole number"),
    ("gpus as truth", {"gpu_model": A100, "gpus": True}, 400, "gpus must be a whole number"),
    ("minus one GPU", {"gpu_model": A100, "gpus": -1}, 400, "gpus must be a whole number"),
    ("half a GPU", {"gpu_model": A100, "gpus": 0.5}, 400, "gpus must be a whole number"),
    ("far too many GPUs", {"gpu_model": A100, "gpus": 10**30}, 400, "gpus must be a whole number"),
    ("more GPUs than allowed at once", gpu(9), 400, "At most 8 GPUs"),
    ("GPUs without a model", {"gpus": 1}, 400, "Say which GPU model"),
    ("an unknown GPU model", {"gpu_model": "H100", "gpus": 1}, 400, "H100 is not a GPU model"),
    ("not a number of cores", {"cpu": "NaN"}, 400, "cpu must be a number of cores"),
    ("negative cores", {"cpu": -2}, 400, "cpu must be a number of cores"),
    ("a list of cores", {"cpu": [1]}, 400, "cpu must be a number of cores"),
    ("memory as number", {"memory": 5}, 400, "memory must be a size"),
    ("memory in furlongs", {"memory": "5 furlongs"}, 400, "memory must be a size"),
    ("next to no memory", {"memory": "1K"}, 400, "at least"),
    ("a port service that is not offered", {"ports": ["ssh"]}, 400, "ssh is not a port service here"),
    ("ports as text", {"ports": "ssh"}, 400, "ports must be a list"),
    ("somebody else's workspace", {"workspace": "secret"}, 404, "The workspace was not found."),
    ("no workspace at all", {"workspace": "nowhere"}, 404, "The workspace was not found."),
    ("somebody else's own workspace", {"workspace": "~mallory"}, 404, "The workspace was not found."),
    ("SQL", {"workspace": "'; DROP TABLE users; --"}, 404, "The workspace was not found."),
    ("an unknown image", {"image": "local:other"}, 404, "The image was not found."),
    ("a path as image", {"image": "/bin/sh"}, 404, "The image was not found."),
    ("an unknown flavor", {"flavor": "huge"}, 404, "The flavor was not found."),
    ("a name of two lines", {"name": "a\x00b"}, 400, "name has characters that cannot be shown"),
    ("a name that runs backwards", {"name": "\u202eevil"}, 400, "name has characters that cannot be shown"),
    ("a very long name", {"name": "x" * 100_000}, 400, "name must be text of at most 100 characters"),
    ("a workspace that is a list", {"workspace": ["lab"]}, 400, "workspace must be text"),
    ("all at once too much", gpu(4, cpu=4000), 409, "No host has room"),
]


@pytest.mark.parametrize(
    ("options", "status", "sentence"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED]
)
def test_a_hostile_or_wrong_wish_gets_one_clear_sentence_and_holds_nothing(
    hub: GpuHub, options: dict[str, Any], status: int, sentence: str
) -> None:
    answer = hub.ask("alice", options)
    message = answer.json()["message"]
    assert (answer.status_code, sentence in message) == (status, True), message
    assert "Traceback" not in message
    assert len(message) < 400
    assert hub.used() == (0, 0)
    assert hub.model("alice") == {}
    assert hub.all_runs("alice") == []
    kept = text("SELECT user_options FROM spawners JOIN users ON users.id = user_id WHERE users.name = 'alice'")
    assert set(hub.world.read(kept)) == {"{}"}


def test_unknown_and_foreign_workspaces_look_the_same_from_outside(hub: GpuHub) -> None:
    foreign, unknown = (hub.ask("alice", {"workspace": name}) for name in ("secret", "nowhere"))
    assert foreign.json() == unknown.json()


def test_a_refused_choice_does_not_stick_to_the_next_start(hub: GpuHub) -> None:
    first = hub.start_server("bob", gpu(2, name="视觉"))
    hub.stop_server("bob")
    for refused in (gpu(9), gpu(1, workspace="secret"), {"nonsense": 1}, gpu(4, cpu=4000)):
        assert hub.ask("bob", refused).status_code >= 400
    again = hub.start_server("bob")
    assert len(again.env["CUDA_VISIBLE_DEVICES"].split(",")) == 2
    assert again.env["REMOTEGPU_ENVIRONMENT_ID"] == first.env["REMOTEGPU_ENVIRONMENT_ID"]
    assert hub.run_of("bob").environment.display_name == "视觉"
    hub.stop_server("bob")


def test_a_new_choice_replaces_the_kept_one_whole_and_leaves_no_trait_behind(hub: GpuHub) -> None:
    hub.start_server("carol", gpu(2, image="local:deaf", cpu="0.2", memory="128M", ports=["tensorboard"]))
    hub.stop_server("carol")
    small = {"image": "local:plain", "gpu_model": "", "cpu": 0.1, "memory": "64M", "ports": []}
    life = hub.start_server("carol", {"workspace": "~carol", **small})
    run = hub.run_of("carol")
    assert (run.workspace.name, run.gpu_slots, run.cpu_millis, run.memory_bytes) == ("~carol", 0, 100, 64 * 2**20)
    assert life.env["REMOTEGPU_WORKSPACE"] == "~carol"
    assert life.env["CUDA_VISIBLE_DEVICES"] == ""
    assert "REMOTEGPU_SIMULATED_GPUS" not in life.env
    assert "REMOTEGPU_PORT_TENSORBOARD" not in life.env
    hub.stop_server("carol")


def test_a_run_sees_the_gpus_that_it_holds_and_nothing_overrides_that(hub: GpuHub) -> None:
    life = hub.start_server("dave", gpu(2, ports=["tensorboard"]))
    assert life.env["CUDA_VISIBLE_DEVICES"].split(",") == hub.gpus_of("dave")
    assert len(set(hub.gpus_of("dave"))) == 2
    assert life.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "NVIDIA_VISIBLE_DEVICES" not in life.env
    assert life.env["OPERATOR"] == "yes"
    assert life.env["REMOTEGPU_ALLOCATION_ID"] == str(hub.run_of("dave").id)
    assert 30100 <= int(life.env["REMOTEGPU_PORT_TENSORBOARD"]) <= 30101
    other = hub.start_server("erin", gpu(2))
    assert not set(hub.gpus_of("erin")) & set(hub.gpus_of("dave"))
    assert other.env["CUDA_VISIBLE_DEVICES"].split(",") == hub.gpus_of("erin")
    refusal = hub.ask("frank", gpu(1))
    assert (refusal.status_code, "0 of 4" in refusal.json()["message"]) == (409, True), refusal.text
    none = hub.start_server("frank", {"workspace": "lab"})
    assert none.env["CUDA_VISIBLE_DEVICES"] == ""
    for name in ("dave", "erin", "frank"):
        hub.stop_server(name)
    assert hub.used() == (0, 0)
    assert hub.run_of("dave").end_reason == EndReason.USER


def test_two_shares_of_a_gpu_are_one_device(hub: GpuHub) -> None:
    """CUDA finds none at all in a list that names one twice."""
    life = hub.start_server("dave", gpu(2, gpu_model="L4/2"))
    shares = hub.gpus_of("dave")
    assert len(shares) == 2
    assert {life.env["CUDA_VISIBLE_DEVICES"]} == set(shares)
    hub.stop_server("dave")


def test_an_environment_gets_no_secret_of_ours(hub: GpuHub) -> None:
    life = hub.start_server("dave", gpu())
    assert not [name for name in life.env if "PASSWORD" in name or "PROXY" in name or name == "REMOTEGPU_RUNTIME"]
    given = repr(life.env)
    secrets = [hub.db_url, str(hub.runtime_file), hub.token, (hub.folder / "cookie_secret").read_text().strip()]
    assert [secret for secret in secrets if secret in given] == []
    assert life.env["JUPYTERHUB_USER"] == "dave"
    hub.stop_server("dave")


def test_the_token_of_a_server_starts_nothing_and_manages_nothing(hub: GpuHub) -> None:
    token = hub.start_server("dave", gpu()).env["JUPYTERHUB_API_TOKEN"]
    assert hub.api("GET", "user", token=token).json()["name"] == "dave"
    more = hub.api("POST", "users/dave/servers/more", json={"user_options": gpu()}, token=token)
    assert more.status_code in {403, 404}
    assert hub.api("GET", "users", token=token).status_code == 403
    scopes = hub.api("GET", "user", token=token).json()["scopes"]
    assert not [scope for scope in scopes if scope.startswith("custom:")]
    hub.stop_server("dave")


@pytest.mark.parametrize("query", ["opt-gpus=1&opt-gpu_model=A100-80GB&opt-name=filled", "name=filled"])
def test_a_link_from_anywhere_only_fills_in_the_form(hub: GpuHub, query: str) -> None:
    with hub.login("grace") as browser:
        for path in ("hub/spawn", "hub/spawn/grace", "hub/spawn/grace/named"):
            page = browser.get(
                f"{path}?{query}", headers={"Referer": "https://evil.example/", "Sec-Fetch-Site": "cross-site"}
            )
            assert page.status_code == 200, page.text[:2000]
            assert 'value="filled"' in page.text
            assert "spawn_form" in page.text
    assert hub.model("grace") == {}
    assert hub.model("grace", "named") == {}
    assert hub.all_runs("grace") == []
    assert "Prefill" not in hub.log_text()


def fields(**more: str) -> dict[str, str]:
    return {
        "workspace": "lab", "image": "local:plain", "flavor": "", "gpu_model": A100, "gpus": "1", "cpu": "0.1",
        "memory_gib": "0.0625", "name": "from the form", **more,
    }  # fmt: skip


@pytest.mark.parametrize("server", ["", "second"], ids=["the default server", "a named server"])
def test_the_form_starts_what_it_says_and_a_refusal_is_shown_once_with_the_choices_kept(
    hub: GpuHub, server: str
) -> None:
    with hub.login("heidi") as browser:
        path = f"hub/spawn/heidi/{server}".rstrip("/")
        xsrf = xsrf_of(browser.get(path))
        assert browser.post(path, data=fields()).status_code == 403, "without XSRF"
        wish = fields(gpus="2", cpu="0.3", name="kept <b>name</b>", workspace="lab")
        refused = browser.post(f"{path}?_xsrf={xsrf}", data={**wish, "memory_gib": "90000"})
        page = refused.text
        assert refused.status_code == 409, page[:2000]
        assert len(re.findall('spawn-error-msg[^>]*><span class="rg-what">No host has room', page)) == 1
        assert "kept &lt;b&gt;name&lt;/b&gt;" in page
        assert "<b>name" not in page
        assert re.search(r'name="cpu"[^>]*value="0.3"|value="0.3"[^>]*name="cpu"', page)
        assert hub.used() == (0, 0)
        assert "spawn-error-msg" not in browser.get(path).text, "shown once"
        started = browser.post(f"{path}?_xsrf={xsrf}", data=wish)
        assert started.status_code == 200
        hub.until(lambda: hub.model("heidi", server).get("ready"), "the form's server runs")
    run = hub.run_of("heidi", server)
    assert (run.gpu_slots, run.cpu_millis, run.environment.display_name) == (2, 300, "kept <b>name</b>")
    hub.stop_server("heidi", server)


def test_several_named_servers_of_one_user_are_environments_of_their_own(hub: GpuHub) -> None:
    lives = {name: hub.start_server("ivan", gpu(), server=name) for name in ("", "a", "b")}
    assert len({life.env["CUDA_VISIBLE_DEVICES"] for life in lives.values()}) == 3
    assert len({life.env["REMOTEGPU_ENVIRONMENT_ID"] for life in lives.values()}) == 3
    assert hub.ask("ivan", gpu(), server="a").status_code == 400, "it runs already"
    for name in lives:
        hub.stop_server("ivan", name)


def test_a_renamed_server_keeps_its_environment_and_a_deleted_one_is_forgotten(hub: GpuHub) -> None:
    first = hub.start_server("ivan", gpu(), server="before")
    assert hub.api("PATCH", "users/ivan/servers/before", json={"name": "after"}).status_code == 400, "it runs"
    hub.stop_server("ivan", "before")
    hub.api("PATCH", "users/ivan/servers/before", json={"name": "after"}).raise_for_status()
    renamed = hub.start_server("ivan", server="after")
    assert renamed.env["REMOTEGPU_ENVIRONMENT_ID"] == first.env["REMOTEGPU_ENVIRONMENT_ID"]
    assert renamed.env["CUDA_VISIBLE_DEVICES"] != ""
    hub.stop_server("ivan", "after")
    hub.api("DELETE", "users/ivan/servers/after", json={"remove": True}).raise_for_status()
    fresh = hub.start_server("ivan", {"workspace": "lab"}, server="after")
    assert fresh.env["REMOTEGPU_ENVIRONMENT_ID"] != first.env["REMOTEGPU_ENVIRONMENT_ID"]
    assert fresh.env["CUDA_VISIBLE_DEVICES"] == ""
    hub.stop_server("ivan", "after")


def test_a_running_server_that_is_removed_at_once_gives_everything_back(hub: GpuHub) -> None:
    hub.start_server("ivan", gpu(), server="gone")
    answer = hub.api("DELETE", "users/ivan/servers/gone", json={"remove": True})
    assert answer.status_code in {202, 204}
    hub.until(lambda: not hub.held_by("ivan", "gone"), "nothing is held")
    hub.until(
        lambda: hub.world.read(select(Environment.state).where(Environment.server_name == "gone")) == ["deleted"],
        "the environment is forgotten",
    )


def test_a_renamed_user_keeps_everything_and_a_re_created_one_inherits_nothing(hub: GpuHub) -> None:
    first = hub.start_server("judy", gpu(name="judy's"))
    hub.stop_server("judy")
    hub.api("PATCH", "users/judy", json={"name": "judith"}).raise_for_status()
    second = hub.start_server("judith")
    assert second.env["REMOTEGPU_ENVIRONMENT_ID"] == first.env["REMOTEGPU_ENVIRONMENT_ID"]
    assert second.env["CUDA_VISIBLE_DEVICES"] != ""
    hub.stop_server("judith")
    assert hub.world.read(select(Workspace.name).where(Workspace.name.in_(["~judy", "~judith"]))) == ["~judith"]
    hub.api("DELETE", "users/judith").raise_for_status()
    hub.api("POST", "users/judith").raise_for_status()
    assert hub.ask("judith", gpu()).status_code == 404, "no member of lab any more"
    third = hub.start_server("judith")
    assert third.env["REMOTEGPU_ENVIRONMENT_ID"] != first.env["REMOTEGPU_ENVIRONMENT_ID"]
    assert (third.env["REMOTEGPU_WORKSPACE"], third.env["CUDA_VISIBLE_DEVICES"]) == ("~judith", "")
    assert len(hub.all_runs("judith")) == 1
    hub.stop_server("judith")


def test_a_user_who_is_renamed_while_a_server_runs_keeps_it(hub: GpuHub) -> None:
    life = hub.start_server("heidi", gpu())
    hub.api("PATCH", "users/heidi", json={"name": "heide"}).raise_for_status()
    time.sleep(max(0.0, life.began + 6 - time.time()))  # what is younger is not looked at
    assert hub.reconcile() == []
    assert hub.model("heide")["ready"]
    hub.stop_server("heide")


def test_an_environment_is_checked_anew_at_each_start(hub: GpuHub) -> None:
    hub.start_server("frank", gpu(), server="old")
    hub.stop_server("frank", "old")
    hub.world.member("lab", "frank", Role.VIEWER)
    refused = hub.ask("frank", server="old")
    assert (refused.status_code, "viewer of lab" in refused.json()["message"]) == (403, True), refused.text
    hub.world.member("lab", "frank", Role.MEMBER)
    hub.start_server("frank", server="old")
    hub.stop_server("frank", "old")


def test_whoever_a_server_is_shared_with_starts_it_for_the_owner_who_pays(hub: GpuHub) -> None:
    hub.start_server("erin", gpu(), server="shared")
    hub.stop_server("erin", "shared")
    share = {"user": "bob", "scopes": ["access:servers!server=erin/shared", "start:servers!server=erin/shared"]}
    answer = hub.api("POST", "shares/erin/shared", json=share)
    assert answer.is_success, answer.text
    bob = hub.token_of("bob")
    answer = hub.api("POST", "users/erin/servers/shared", token=bob)
    assert answer.status_code in {201, 202}, answer.text
    hub.until(lambda: hub.model("erin", "shared").get("ready"), "it runs")
    run = hub.run_of("erin", "shared")
    assert (run.user.name, run.workspace.name) == ("erin", "lab")
    entry = admission(hub, run.id)
    assert (entry.actor, entry.acted_as) == ("bob", "erin")
    with hub.login("bob") as browser:
        assert browser.get("user/erin/shared/").status_code == 200
    assert hub.held_by("bob") == []
    hub.stop_server("erin", "shared")


def test_an_admin_acts_for_a_user_and_the_audit_names_both(hub: GpuHub) -> None:
    hub.start_server("frank", gpu())
    hub.stop_server("frank")
    entry = admission(hub, hub.run_of("frank").id)
    assert (entry.actor, entry.acted_as, entry.address) == ("admin", "frank", "127.0.0.1")
    forged = {"X-Real-Ip": "203.0.113.9", "X-Forwarded-For": "198.51.100.9", "Authorization": f"token {hub.token}"}
    with httpx.Client(
        transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=30, headers=forged
    ) as elsewhere:
        assert elsewhere.post(f"{hub.url}hub/api/users/frank/server").status_code in {201, 202}
    hub.until(lambda: hub.model("frank").get("ready"), "it runs")
    hub.stop_server("frank")
    assert admission(hub, hub.run_of("frank").id).address == "127.0.0.2", "what the proxy saw"
    refused = hub.world.audit("allocation.refused")
    assert refused[-1].detail["reasons"]


def test_six_denied_starts_in_a_row_leave_the_hub_alive(hub: GpuHub) -> None:
    pid = hub.pid
    for number in range(6):
        assert hub.ask("grace", [gpu(9), gpu(4, cpu=4000), {"workspace": "secret"}][number % 3]).status_code >= 400
    hub.start_server("grace", gpu())
    hub.stop_server("grace")
    assert (hub.pid, hub.process.poll() if hub.process else 0) == (pid, None)


def test_a_server_that_ends_by_itself_gives_everything_back(hub: GpuHub, tmp_path: Path) -> None:
    answer = hub.ask("grace", gpu(image="local:crash"))
    assert answer.status_code in {202, 500}, answer.text
    hub.until_free("grace")
    run = hub.run_of("grace")
    assert run.end_reason in {EndReason.FAILED, EndReason.EXITED}
    assert run.started_at is None or run.ended_at is not None
    assert hub.used() == (0, 0)


def stopped_servers(hub: GpuHub, user: str) -> set[str]:
    answer = hub.api("GET", f"users/{user}?include_stopped_servers=1").json()
    return {name for name, one in answer["servers"].items() if name and one["stopped"]}


async def clean_up(hub: GpuHub) -> None:
    """What the workspaces service does each minute beside reconciling."""
    async with HubClient(hub.api_url, hub.token) as client:
        await workers.stop_due(hub.runtime, client.stop_server)
        await workers.forget_refused(hub.runtime, client.forget_server)


def test_a_new_environment_that_was_refused_does_not_stay_in_the_hub(hub: GpuHub) -> None:
    hub.start_server("grace", gpu(), server="kept")
    hub.stop_server("grace", "kept")
    before = stopped_servers(hub, "grace")
    hub.start_server("grace", gpu(), server="running")
    assert hub.ask("grace", gpu(9), server="kept").status_code == 400
    assert hub.ask("grace", gpu(9), server="refused").status_code == 400
    assert hub.ask("grace", gpu(9), server="second-try").status_code == 400
    hub.start_server("grace", gpu(), server="second-try")
    asyncio.run(clean_up(hub))
    assert stopped_servers(hub, "grace") == before
    assert hub.model("grace", "running")["ready"]
    assert hub.model("grace", "second-try")["ready"]
    for name in ("running", "second-try"):
        hub.stop_server("grace", name)
    before |= {"running", "second-try"}
    asyncio.run(clean_up(hub))
    assert hub.ask("grace", gpu(9), server="refused").status_code == 400, "the name can be had again"
    asyncio.run(clean_up(hub))
    assert stopped_servers(hub, "grace") == before


def test_who_is_removed_is_told_when_it_stops_and_then_it_does(hub: GpuHub) -> None:
    hub.start_server("kate", gpu())
    run = hub.run_of("kate")
    try:
        hub.world.remove("lab", "kate")
        asyncio.run(clean_up(hub))
        assert hub.model("kate")["ready"]
        (mine,) = hub.service("workspaces", "api/me", token=hub.token_of("kate")).json()["environments"]
        left = datetime.fromisoformat(mine["run"]["stops_at"]) - datetime.now(UTC)
        assert 3500 < left.total_seconds() <= 3600
        assert (mine["run"]["stops_reason"], mine["run"]["stops_message"]) == ("admin", workspaces.MAY_NOT_START)
        with begin(hub.engine) as session:
            session.execute(update(Deadline).values(at=datetime.now(UTC)))
        asyncio.run(clean_up(hub))
        hub.until_free("kate")
        ended = hub.world.allocation(run.attempt)
        assert (ended.end_reason, ended.environment.message) == (
            EndReason.ADMIN, workspaces.MAY_NOT_START
        )  # fmt: skip
        assert hub.model("kate") == {}
    finally:
        hub.world.member("lab", "kate")
