"""The `remotegpu` command on a real hub, both ways: by its database and by its API, the same words come out."""

import csv
import io
import json
import os
import pty
import re
import select as polling
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import delete

from remotegpu_hub.app import main
from remotegpu_hub.cli import asking, audit, logins
from remotegpu_hub.cli.members import MembersSet
from remotegpu_hub.clients import outputs
from remotegpu_hub.clients.api import REACH
from remotegpu_hub.db import begin
from remotegpu_hub.domain import environments, events, workspaces
from remotegpu_hub.domain.audit import Actor, record
from remotegpu_hub.orm import EventKind, SshKey
from tests.gpu_hubs import GpuHub
from tests.worlds import ADMIN

from .conftest import put_members
from .test_audit_pages import see

VARIABLES = (
    "REMOTEGPU_DB_URL",
    "REMOTEGPU_HUB_URL",
    "REMOTEGPU_TOKEN",
    "REMOTEGPU_HUB_TOKEN_FILE",
    "REMOTEGPU_ALLOW_HTTP",
)
OURS = "custom:remotegpu:"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


class Terminal:
    """Calls the command on one hub, by its database or by its API as somebody."""

    def __init__(self, hub: GpuHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.hub, self._monkeypatch, self._capfd = hub, monkeypatch, capfd

    def call(self, *words: str) -> Said:
        self._capfd.readouterr()
        code = main(list(words))
        said = self._capfd.readouterr()
        return Said(code, said.out, said.err)

    def by_database(self, *words: str) -> Said:
        self._use(REMOTEGPU_DB_URL=self.hub.db_url)
        return self.call(*words)

    def by_api(self, *words: str, token: str | None = None) -> Said:
        self._use(REMOTEGPU_HUB_URL=self.hub.url, REMOTEGPU_TOKEN=token or self.hub.token)
        return self.call(*words)

    def _use(self, **variables: str) -> None:
        for name in VARIABLES:
            self._monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def log_in(self, token: str) -> None:
        """Without the command, for what is not about logging in."""
        self._use()
        logins.write(logins.Login(logins.Address(self.hub.url, token)))


@pytest.fixture
def terminal(
    hub: GpuHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Terminal:
    put_members(hub, zoe="member")
    with begin(hub.engine) as session:
        session.execute(delete(SshKey))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.chdir(tmp_path)
    hub.runtime.write("remotegpu-runtime.json")
    found = Terminal(hub, monkeypatch, capfd)
    found._use()
    return found


def both(terminal: Terminal, *words: str) -> tuple[Said, Said]:
    """What the two ways say; once more where a tick of the hub came in between."""
    for _ in range(3):
        ways = terminal.by_database(*words), terminal.by_api(*words)
        if ways[0] == ways[1]:
            break
    return ways


@pytest.mark.parametrize("json_too", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    "words",
    [
        ("workspaces",), ("workspaces", "list", "--all"), ("workspaces", "show", "lab"), ("workspaces", "show", "~alice"),
        ("members",), ("members", "list", "lab"), ("quotas",), ("quotas", "list", "--workspace", "lab"),
        ("quotas", "list", "--user", "bob"), ("hosts",), ("gpus",), ("gpus", "list", "--host", "HOST"), ("images",),
        ("flavors",), ("environments",), ("environments", "list", "--workspace", "lab", "--user", "carol"),
        ("budgets",), ("overview",), ("audit", "--most", "5"), ("events", "--most", "3"), ("webhooks",), ("users",), ("users", "--search", "o"), ("ports",), ("ports", "--closed", "--service", "ssh"), ("policy", "dry-run", "--user", "gpus=0", "--workspace", "gpu:A100-80GB=1"), ("workspaces", "usage", "lab"), ("volumes",), ("volumes", "list", "--workspace", "lab"), ("requests",), ("requests", "list", "--workspace", "lab"), ("environments", "--running"), ("ssh-keys", "list", "carol"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_read_is_the_same_both_ways(terminal: Terminal, words: tuple[str, ...], json_too: tuple[str, ...]):
    host = terminal.hub.runtime.settings.host_name
    here, there = both(terminal, *(host if word == "HOST" else word for word in words), *json_too)
    assert here == there
    assert (here.code, here.err) == (0, "")
    assert here.out.count("\n") >= 1


def test_the_audit_as_a_file_is_the_one_of_the_page(terminal: Terminal):
    hub, nasty = terminal.hub, '=HYPERLINK("http://127.0.0.1/")'
    with begin(hub.engine) as session:
        record(session, actor=Actor(nasty), action="test.csv", entity="workspace", entity_id=1, now=hub.world.now,
               name="-1+1")  # fmt: skip
    here, there = both(terminal, "audit", "--action", "test.csv", "--csv")
    assert here == there
    page = see(hub, "admin", "admin/audit.csv?action=test.csv").content.decode()
    assert there.out.replace("\r\n", "\n") == page.replace("\r\n", "\n")
    head, line = csv.reader(io.StringIO(there.out.removeprefix("\ufeff")))
    assert dict(zip(head, line, strict=True))["actor"] == "'" + nasty
    first = terminal.by_api("audit", "--csv", "--most", "3")
    assert (first.code, len(list(csv.reader(io.StringIO(first.out))))) == (0, 4)
    assert terminal.by_api("audit", "--csv", "--json").code == 2
    assert terminal.by_api("audit", "--csv", token=hub.token_of("carol")).code == 1


def test_a_file_that_ends_early_says_so(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit, "MOST_IN_A_FILE", 2)
    lines = terminal.by_database("audit", "--csv").out.splitlines()
    assert (len(lines), lines[-1]) == (4, "Cut off after 2 entries: narrow the filters down.")


def test_ports_that_were_given_back_are_shown_the_same_both_ways(terminal: Terminal):
    world = terminal.hub.world
    run = world.run("zoe", server="ported", attempt="ported", ports=["ssh"], image=next(iter(terminal.hub.images)))
    world.end(run.attempt)
    try:
        here, there = both(terminal, "ports", "--closed", "--json")
        assert here == there
        rows = [one for one in json.loads(here.out)["ports"] if one["environment_id"] == run.environment_id]
        assert [(one["service"], one["user"], one["open"]) for one in rows] == [("ssh", "zoe", False)]
        own = terminal.by_api("ports", "--closed", "--service", "ssh", token=terminal.hub.token_of("zoe"))
        assert re.search(rf"^ *{run.environment_id}  ported +zoe +lab +ssh ", own.out, re.MULTILINE), own
        others = terminal.by_api("ports", "--closed", token=terminal.hub.token_of("carol"))
        assert "ported" not in others.out
    finally:
        with begin(terminal.hub.engine) as session:
            environments.delete(session, user_id=run.user_id, server_name="ported", actor=ADMIN, now=world.now)


def test_a_running_environment_and_its_ports_are_shown_the_same_both_ways(terminal: Terminal):
    hub = terminal.hub
    hub.start_server("zoe", {"workspace": "lab", "gpus": 1, "gpu_model": "A100-80GB"}, server="ways")
    try:
        here, there = both(terminal, "environments", "list", "--running", "--user", "zoe")
        assert here == there
        assert "A100-80GB" in here.out
        number = str(hub.run_of("zoe", "ways").environment_id)
        here, there = both(terminal, "environments", "access", number)
        assert here == there
        assert here.code == 0
        assert "held by zoe" in terminal.by_api("gpus").out
        token = hub.token_of("zoe")
        month = f"{datetime.now(UTC):%Y-%m}"
        here, there = both(terminal, "policy", "dry-run", "--month", month, "--user", "gpus=0")
        assert here == there
        assert re.search(r"zoe .* ways +gpus of the user: 0 held, 1 wanted, 0 allowed", here.out), here.out
        wrong = terminal.by_api("policy", "dry-run", "--user", "gpus=default")
        assert (wrong.code, "Write a number" in wrong.err) == (2, True)
        assert terminal.by_api("policy", "dry-run", "--user", "gpus=0", token=token).code == 1
        quoted = terminal.by_api("offers", "--gpus", "1", "--gpu-model", "A100-80GB", token=token)
        assert (quoted.code, "A100-80GB" in quoted.out) == (0, True)
        assert "It " in quoted.out.splitlines()[-1]
        assert json.loads(terminal.by_api("offers", "--json", token=token).out)["offers"]["user"] == "zoe"
        assert "add --hub URL" in terminal.by_database("offers").err
    finally:
        hub.stop_server("zoe", "ways")
    here, there = both(terminal, "environments", "access", number)
    assert here == there
    assert here.err == "remotegpu: A running environment with this ID was not found.\n"


CHANGES = [
    (("members", "remove", "lab", "zoe"), "zoe is no longer a member of lab.\n"),
    (("members", "add", "lab", "zoe", "--role", "viewer"), "zoe is now viewer of lab.\n"),
    (("members", "set", "lab", "zoe", "--role", "member"), "zoe is now member of lab, active.\n"),
    (("members", "suspend", "lab", "zoe"), "zoe is suspended in lab.\n"),
    (("members", "set", "lab", "zoe", "--status", "active"), "zoe is now member of lab, active.\n"),
    (("quotas", "set", "--workspace", "lab", "gpus=7", "memory=64G", "--model", "A100-80GB=3"), None),
    (("quotas", "set", "--workspace", "lab", "gpus=unlimited", "memory=unlimited", "--model", "A100-80GB=default"), None),
    (("quotas", "set", "--user", "bob", "cpu=2"), None),
    (("quotas", "set", "--user", "bob", "cpu=default"), None),
    (("quotas", "set", "--workspace", "lab", "--user", "carol", "environments=9"), None),
    (("quotas", "set", "--workspace", "lab", "--user", "carol", "environments=default"), None),
    (("quotas", "set", "--default", "user", "gpu_hours=unlimited"), None),
    (("budgets", "set", "lab", "5000", "--warn", "90", "--action", "warn"), "lab may spend $5,000.00 a month.\n"),
    (("budgets", "set", "lab", "6000.5"), "lab may spend $6,000.50 a month.\n"),
    (("hosts", "maintenance", "HOST"), None),
    (("hosts", "online", "HOST"), None),
    (("hosts", "drain", "HOST", "--minutes", "5"), "Nothing new starts on HOST. Nothing runs there.\n"),
    (("hosts", "online", "HOST"), None),
    (("gpus", "maintenance", "HOST:0"), None),
    (("gpus", "available", "HOST:0"), None),
    (("workspaces", "update", "lab", "--display-name", "实验室 {0}", "--hub-group", "labs"), "Changed the workspace lab.\n"),
    (("workspaces", "update", "lab", "--display-name", "lab", "--hub-group", ""), "Changed the workspace lab.\n"),
]  # fmt: skip


COME_AND_GO = {("members", "remove"): {"zoe": "member"}, ("members", "add"): {}}
"""What can be done once only, and who must be a member before."""


def test_what_is_changed_is_told_the_same_both_ways(terminal: Terminal):
    host = terminal.hub.runtime.settings.host_name
    for words, sentence in CHANGES:
        named = [word.replace("HOST", host) for word in words]
        if words[:2] in COME_AND_GO:
            put_members(terminal.hub, **COME_AND_GO[words[:2]])
            here = terminal.by_database(*named)
            put_members(terminal.hub, **COME_AND_GO[words[:2]])
            there = terminal.by_api(*named)
        else:
            here, there = both(terminal, *named)
        assert here == there, named
        assert (here.code, here.err) == (0, "")
        assert sentence is None or here.out == sentence.replace("HOST", host)
    audited = [(one.actor, one.action) for one in terminal.hub.world.audit()][-2:]
    assert [action for _actor, action in audited] == ["workspace.update"] * 2
    assert audited[1][0] == "admin", "by the API it is the user who did it"
    assert audited[0][0].startswith("cli:")


@pytest.mark.parametrize("way", ["by_database", "by_api"])
def test_workspaces_and_keys_come_and_go_by_either_way(terminal: Terminal, way: str):
    call: Callable[..., Said] = getattr(terminal, way)
    name = f"made-{way.replace('_', '-')}"
    made = call("workspaces", "create", name, "--owner", "alice", "--display-name", "视觉组", "--hub-group", name)
    assert made == Said(0, f"Made the workspace {name}, owned by alice.\n", "")
    assert json.loads(call("workspaces", "show", name, "--json").out)["workspace"]["hub_group"] == name
    archived = call("workspaces", "archive", name)
    assert archived.out == f"Archived the workspace {name}: nobody can start there any more.\n"
    assert name not in call("workspaces").out
    assert name in call("workspaces", "list", "--all").out
    reopened = call("workspaces", "reopen", name)
    assert reopened == Said(0, f"The workspace {name} is open: its members can start environments there.\n", "")
    assert name in call("workspaces").out

    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    Path("id.pub").write_text(f"{key} zoe@laptop\n")
    added = call("ssh-keys", "add", "zoe", "id.pub")
    assert added.out.startswith("zoe can log in with zoe@laptop, SHA256:")
    (row,) = json.loads(call("ssh-keys", "list", "zoe", "--json").out)["ssh_keys"]
    assert call("ssh-keys", "remove", "zoe", str(row["id"])).out == f"Key {row['id']} of zoe is removed.\n"
    assert call("ssh-keys", "list", "zoe").out == "zoe has no keys.\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("workspaces", "show", "nowhere"), "The workspace nowhere was not found."),
        (("workspaces", "create", "lab", "--owner", "alice"), "There is a workspace named lab already."),
        (("workspaces", "create", "fresh", "--owner", "nobody"), "The user nobody was not found."),
        (("workspaces", "create", "A", "--owner", "alice"), "A cannot be a workspace's name: write 3 to 63 of a-z, 0-9 and -, beginning with a letter."),
        (("members", "add", "lab", "bob"), "bob is admin of lab already, active: change that with `remotegpu members set`."),
        (("members", "suspend", "lab", "eve"), "The member eve was not found."),
        (("members", "remove", "lab", "alice"), "lab needs an owner. Make somebody else an owner first."),
        (("members", "set", "lab", "..", "--role", "admin"), "`..` names no user."),
        (("hosts", "online", "nowhere"), "The host nowhere was not found."),
        (("gpus", "maintenance", "nowhere:0"), "The GPU nowhere:0 was not found: name it as HOST:INDEX or by its UUID; `remotegpu gpus` lists them."),
        (("environments", "stop", "999999"), "The environment 999999 was not found."),
        (("environments", "list", "--user", "nobody"), "The user nobody was not found."),
        (("quotas", "set", "--user", "nobody", "gpus=1"), "The user nobody was not found."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_is_refused_is_refused_in_the_same_words(terminal: Terminal, words: tuple[str, ...], sentence: str):
    here, there = both(terminal, *words)
    assert here == there
    assert here.err == f"remotegpu: {sentence}\n"
    assert (here.code, here.out) == (2 if ".." in words else 1, "")


def test_more_is_asked_for_and_decided_by_either_way(terminal: Terminal):
    carol = terminal.hub.token_of("carol")
    words = ("requests", "ask", "gpus=2", "memory=8G", "--model", "A100-80GB=2", "--workspace", "lab", "--inside")
    hers = ("quotas", "set", "--workspace", "lab", "--user", "carol")
    little = ("gpus=0", "memory=1G", "--model", "A100-80GB=0")
    for decide in (terminal.by_database, terminal.by_api):
        assert decide(*hers, *little).code == 0
        asked = terminal.by_api(*words, "--reason", "两篇论文 <b>", token=carol)
        number = re.fullmatch(r"Asked for gpus 2, memory 8 GiB, 2 × A100-80GB, as request (\d+)\.\n", asked.out)
        assert number, asked
        here, there = both(terminal, "requests", "--state", "open")
        assert here == there
        assert "两篇论文 <b>" in here.out
        assert decide("requests", "approve", number[1], "gpus=1").out == "carol may have gpus 1.\n"
        refused = decide("requests", "refuse", number[1], "--answer", "no")
        assert refused.code == 1
    assert terminal.by_api(*hers, *little).code == 0
    assert terminal.by_api("requests", "--state", "open", token=carol).out == "Nobody asked for anything.\n"
    number = terminal.by_api(*words, "--reason", "x", "--json", token=carol).out
    withdrawn = terminal.by_api("requests", "withdraw", str(json.loads(number)["request"]["id"]), token=carol)
    assert withdrawn.out.endswith("is withdrawn.\n")
    assert terminal.by_api(*hers, "gpus=default", "memory=default", "--model", "A100-80GB=default").code == 0
    assert terminal.by_database(*words, "--reason", "x").err.endswith("then add --hub URL.\n")
    assert terminal.by_api("budgets", "remove", "lab").out == "lab has no budget any more.\n"
    assert terminal.by_database("budgets", "remove", "lab").err == "remotegpu: The budget was not found.\n"


def test_the_catalogue_is_changed_by_either_way(terminal: Terminal):
    image = terminal.hub.image("mute")
    numbers = ("--cpu", "8", "--memory", "64G", "--gpus", "1", "--gpu-model", "A100-80GB")
    for words in (
        ("images", "set", image, "--status", "deprecated", "--visibility", "workspace", "--workspace", "lab"),
        ("images", "set", image, "--status", "active", "--visibility", "public"),
        ("images", "set", "local:nothing", "--status", "blocked"),
        ("images", "set", image, "--status", "retired"),
        ("flavors", "set", "from-outside", *numbers),
        ("flavors", "set", "from-outside", *numbers, "--display-name", "外面", "--workspace", "lab"),
        ("flavors", "set", "from-outside", "--cpu", "1", "--memory", "1T", "--workspace", "nothing"),
    ):
        here, there = both(terminal, *words)
        assert here == there
        assert (here.code == 0) == (not {"local:nothing", "nothing", "retired"} & set(words)), here
    assert "from-outside" in terminal.by_api("flavors").out
    assert (
        terminal.by_api("flavors", "retire", "from-outside").out == "The flavor from-outside can be chosen no more.\n"
    )
    assert "from-outside" not in terminal.by_database("flavors").out
    assert terminal.by_api("flavors", "retire", "none").err == "remotegpu: The flavor none was not found.\n"


def test_a_user_is_invited_by_either_way_and_answers_from_outside(terminal: Terminal):
    eve = terminal.hub.token_of("eve")
    for send, answer in ((terminal.by_database, "decline"), (terminal.by_api, "accept")):
        sent = send("invitations", "send", "lab", "eve", "--role", "viewer", "--days", "3")
        assert sent.out.startswith("eve can become viewer of lab until 20"), sent
        assert "eve" in send("invitations", "list", "lab").out
        assert "lab" in terminal.by_api("invitations", token=eve).out
        assert terminal.by_api("invitations", answer, "lab", token=eve).code == 0
    assert "eve" in terminal.by_api("members", "list", "lab").out
    put_members(terminal.hub, zoe="member")
    terminal.by_api("invitations", "send", "lab", "eve")
    here = terminal.by_database("invitations", "take-back", "lab", "eve")
    assert here.out == "eve is not invited into lab any more.\n"
    assert terminal.by_api("invitations", token=eve).out == "You are not invited.\n"


def test_long_lists_are_read_page_by_page(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    whole = terminal.by_api("quotas", "--json"), terminal.by_api("gpus", "--json")
    monkeypatch.setattr(asking, "MOST_A_PAGE", 2)
    assert (terminal.by_api("quotas", "--json"), terminal.by_api("gpus", "--json")) == whole
    assert terminal.by_database("quotas", "--json") == whole[0]
    assert len(json.loads(whole[0].out)["quotas"]) > 2


@pytest.mark.parametrize("way", ["by_database", "by_api"])
def test_of_two_admins_who_change_a_member_at_once_the_second_is_told(
    terminal: Terminal, way: str, monkeypatch: pytest.MonkeyPatch
):
    change = MembersSet.change

    def somebody_was_faster(command: MembersSet, known: Any) -> Any:
        put_members(terminal.hub, zoe="viewer")
        return change(command, known)

    monkeypatch.setattr(MembersSet, "change", somebody_was_faster)
    said = getattr(terminal, way)("members", "set", "lab", "zoe", "--role", "admin")
    assert said.err.startswith("remotegpu: Somebody else changed it meanwhile.")
    removed = getattr(terminal, way)("members", "remove", "lab", "zoe")
    assert removed.out == "zoe is no longer a member of lab.\n", "an ETag that was just read is still good"


def test_a_user_sees_and_does_from_outside_what_is_theirs(terminal: Terminal):
    hub = terminal.hub
    hub.start_server("carol", {"workspace": "lab"}, server="mine")
    number = str(hub.run_of("carol", "mine").environment_id)
    carol = hub.token_of("carol")
    ask: Callable[..., Said] = lambda *words: terminal.by_api(*words, token=carol)  # noqa: E731
    assert {row["user"] for row in json.loads(ask("environments", "--json").out)["environments"]} == {"carol"}
    assert "secret" not in ask("workspaces", "list", "--all").out
    assert ask("workspaces", "show", "secret") == Said(1, "", "remotegpu: The workspace secret was not found.\n")
    assert "Only an admin of the hub" in ask("hosts").err
    assert "Your role in lab is member." in ask("members", "set", "lab", "zoe", "--role", "admin").err
    assert ask("ssh-keys", "list", "bob").err == "remotegpu: The user bob was not found.\n"
    assert ask("ssh-keys", "list", "carol").out == "carol has no keys.\n"
    assert re.search(r"^lab +all members' +environments +\d+ +", ask("limits").out, re.M)
    assert {one["name"] for one in json.loads(ask("limits", "--json").out)["limits"]} >= {"lab", "~carol"}
    assert "add --hub URL" in terminal.by_database("limits").err
    assert re.search(
        rf"^ *\d+ +active +{hub.runtime.settings.host_name} ", ask("environments", "runs", number).out, re.M
    )
    of_host = ("environments", "list", "--host", hub.runtime.settings.host_name)
    assert number in {str(one["id"]) for one in json.loads(terminal.by_api(*of_host, "--json").out)["environments"]}
    assert "Only an admin of the hub" in ask(*of_host).err
    assert ask("workspaces", "leave", "lab").code == 2
    zoe = hub.token_of("zoe")
    assert (
        terminal.by_api("workspaces", "leave", "lab", "--yes", token=zoe).out == "You are no member of lab any more.\n"
    )
    assert terminal.by_api("workspaces", "show", "lab", token=zoe).code == 1

    assert re.fullmatch(rf"Environment {number} (stopped|is stopping)\.\n", ask("environments", "stop", number).out)
    hub.until_free("carol", "mine")
    assert re.fullmatch(rf"Environment {number} (runs|is starting)\.\n", ask("environments", "start", number).out)
    hub.until(lambda: hub.model("carol", "mine").get("ready"), "it runs")
    said = ask("environments", "restart", number)
    assert re.fullmatch(rf"Environment {number} (runs again|is starting again)\.\n", said.out), said
    hub.until(lambda: hub.model("carol", "mine").get("ready"), "it runs again")
    assert "add --hub URL" in terminal.by_database("environments", "stop", number).err
    assert hub.model("carol", "mine").get("ready"), "on the database it was left alone"
    hub.stop_server("carol", "mine")
    assert ask("environments", "delete", number).code == 2
    refused = ask("environments", "delete", number, "--volume", "--yes")
    assert (refused.code, "home volume" in refused.err) == (1, True), "there is none, or others see it"
    assert ask("environments", "delete", number, "--yes").out == f"Environment {number} is deleted.\n"
    assert ask("environments", "access", number).code == 1


def test_an_environment_is_made_from_outside_and_what_it_prints_is_read_live(terminal: Terminal):
    hub, carol = terminal.hub, terminal.hub.token_of("carol")
    ask: Callable[..., Said] = lambda *words: terminal.by_api(*words, token=carol)  # noqa: E731
    choice = ("--workspace", "lab", "--image", hub.image("plain"), "--cpu", "0.1", "--memory", "64M")
    made = ask("environments", "create", "从外面 <b>", *choice)
    assert (made.code, made.err) == (0, "")
    find = lambda: json.loads(ask("environments", "--running", "--json").out)["environments"]  # noqa: E731
    hub.until(lambda: [one for one in find() if one["state"] == "running"], "it runs")
    (found,) = find()
    assert (found["display_name"], found["workspace"], found["memory_bytes"]) == ("从外面 <b>", "lab", 64 * 2**20)
    number, server = str(found["id"]), found["server_name"]
    try:
        assert (
            made.out in (f"Environment {number} is starting.\n", f"Environment {number} runs.\n") or "asked" in made.out
        )
        printed = outputs.path_of(hub.runtime.settings.output_folder, found["run"]["allocation_id"])
        with printed.open("a") as file:
            file.write("loss 0.5\nloss 0.25 损失\n")
        assert ask("environments", "logs", number, "--tail", "1") == Said(0, "loss 0.25 损失\n", "")
        assert "no times" in ask("environments", "logs", number, "--since", "10m").err
        assert "not a moment" in ask("environments", "logs", number, "--since", "yesterday").err
        variables = {"REMOTEGPU_HUB_URL": hub.url, "REMOTEGPU_TOKEN": carol}
        live = subprocess.Popen(
            [sys.executable, "-m", "remotegpu_hub.app", "environments", "logs", number, "-f", "--tail", "1"],
            env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert live.stdout
        assert live.stdout.readline() == "loss 0.25 损失\n"
        with printed.open("a") as file:
            file.write("loss 0.125\n")
        assert live.stdout.readline() == "loss 0.125\n"
        hub.stop_server("carol", server)
        _rest, errors = live.communicate(timeout=60)
        assert (live.returncode, errors) == (0, "")
        refused = terminal.by_api("environments", "logs", number, token=hub.token_of("eve"))
        assert refused.err == f"remotegpu: The environment {number} was not found.\n"
        assert "add --hub URL" in terminal.by_database("environments", "logs", number).err
        assert "add --hub URL" in terminal.by_database("environments", "create", "x").err
    finally:
        hub.stop_server("carol", server)
        assert ask("environments", "delete", number, "--yes").code == 0


@pytest.mark.parametrize("way", ["by_database", "by_api"])
def test_a_webhook_is_added_paused_tested_and_removed_by_either_way(terminal: Terminal, way: str):
    call: Callable[..., Said] = getattr(terminal, way)
    added = call("webhooks", "add", f"http://127.0.0.1:9/{way}", "--kind", "environment.failed")
    assert (added.code, added.err) == (0, "")
    assert re.search(r"^secret +whsec_\S{20,}$", added.out, re.M)
    (row,) = [one for one in json.loads(call("webhooks", "--json").out)["webhooks"] if one["url"].endswith(way)]
    assert (row["kinds"], row["active"]) == (["environment.failed"], True)
    number = str(row["id"])
    paused = call("webhooks", "set", number, "--pause", "--kind", "budget.threshold")
    assert paused == Said(0, f"Webhook {number}, http://127.0.0.1:9/{way}, is paused.\n", "")
    tested = call("webhooks", "test", number)
    assert tested.code == 1
    assert ("It was not taken: " if way == "by_api" else "add --hub URL") in tested.err
    log = json.loads(call("webhooks", "log", number, "--json").out)["deliveries"]
    assert [(one["kind"], one["state"]) for one in log] == [("test", "given up")] * (way == "by_api")
    if log:
        assert "A test is not repeated" in call("webhooks", "again", number, str(log[0]["id"])).err
    assert call("webhooks", "remove", number).out == f"Webhook {number}, http://127.0.0.1:9/{way}, is removed.\n"
    assert call("webhooks", "log", number).err == f"remotegpu: The webhook {number} was not found.\n"


def test_events_are_followed_from_outside_and_their_list_is_narrowed_down(terminal: Terminal):
    hub = terminal.hub

    def happen(scope: str) -> None:
        with begin(hub.engine) as session:
            lab = workspaces.by_name(session, name="lab")
            events.record(
                session, kind=EventKind.QUOTA, now=datetime.now(UTC), workspace_id=lab.id, scope=scope, percent=80
            )

    variables = {"REMOTEGPU_HUB_URL": hub.url, "REMOTEGPU_TOKEN": hub.token_of("carol")}
    live = subprocess.Popen(
        [sys.executable, "-m", "remotegpu_hub.app", "events", "-f", "--kind", "quota.threshold"],
        env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert live.stdout
        for scope in ("first", "second"):
            while not polling.select([live.stdout], [], [], 3)[0]:  # it may not listen yet when the first one comes
                happen(scope)
            line = live.stdout.readline()
            assert re.match(r" *\d+  \S+ \S+Z  quota\.threshold .* lab ", line)
    finally:
        live.terminate()
        live.communicate(timeout=60)
    happen("of the list")
    read: Callable[..., Any] = lambda *words: json.loads(terminal.by_api("events", "--json", *words).out)["events"]  # noqa: E731
    hub.until(lambda: read("--most", "1")[0]["detail"] == {"scope": "of the list", "percent": 80}, "it has its number")
    newest, older = read("--kind", "quota.threshold", "--most", "2")
    assert newest["id"] > older["id"]
    assert read("--after", str(older["id"]))[-1] == newest
    assert terminal.by_api("events", "--environment", "1", "--mine").code == 2
    assert "add --hub URL" in terminal.by_database("events", "-f").err


def test_the_audit_log_is_narrowed_down(terminal: Terminal):
    terminal.by_database("hosts", "maintenance", terminal.hub.runtime.settings.host_name)
    began = datetime.now(UTC).isoformat()
    terminal.by_api("hosts", "online", terminal.hub.runtime.settings.host_name)
    read: Callable[..., Any] = lambda *words: json.loads(terminal.by_api("audit", "--json", *words).out)["audit"]  # noqa: E731
    (one,) = read("--action", "host.status", "--actor", "admin", "--most", "1")
    assert (one["entity"], one["detail"]["after"]) == ("host", {"status": "online"})
    before = read("--entity", "host", "--id", str(one["entity_id"]), "--until", began)
    assert before[0]["actor"].startswith("cli:")
    assert one["id"] not in [entry["id"] for entry in before]
    assert [entry["id"] for entry in read("--action", "host.status", "--since", began)] == [one["id"]]
    assert "host.status" in terminal.by_api("audit", "--most", "1").out
    assert terminal.by_api("audit", token=terminal.hub.token_of("bob")).code == 1


# logging in


def run(*words: str, given: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    command = [sys.executable, "-m", "remotegpu_hub.app", *words]
    return subprocess.run(command, env=env, input=given, capture_output=True, text=True, timeout=120)


def test_a_login_is_kept_for_its_owner_only_and_the_token_is_seen_nowhere(terminal: Terminal):
    hub, token = terminal.hub, terminal.hub.token_of("alice")
    made = run("login", f"{hub.url}hub/home", "--token-file", "-", given=f"{token}\n")
    assert (made.returncode, made.stderr) == (0, "")
    kept = logins.path()
    assert made.stdout == f"Logged in to {hub.url} as alice. The token is kept in {kept}.\n"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert os.listdir(kept.parent) == ["login.json"]
    who = run("whoami")
    assert re.search(rf"^way +API\nhub +{hub.url}\nnamed by +{kept}\nname +alice\nhub admin +no$", who.stdout, re.M)
    assert run("workspaces", "show", "lab").returncode == 0
    for said in (made, who, run("workspaces", "--help")):
        assert token not in said.stdout + said.stderr
    assert token not in hub.log_text()
    again = terminal.call("login", "--token-file", "missing")
    assert "missing cannot be read" in again.err
    gone = terminal.call("logout")
    assert f"{hub.url}hub/token" in gone.out
    assert not kept.exists()
    assert terminal.call("logout").out == "You are not logged in.\n"
    assert "no login" in terminal.call("workspaces").err


def test_the_token_is_asked_for_without_showing_it(terminal: Terminal):
    token = terminal.hub.token_of("admin")
    pid, screen = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "remotegpu_hub.app", "login", terminal.hub.url])
    shown, deadline = b"", time.monotonic() + 60
    typed = False
    while time.monotonic() < deadline:
        if not polling.select([screen], [], [], 1)[0]:
            continue
        try:
            shown += os.read(screen, 4096)
        except OSError:
            break
        if b"Token: " in shown and not typed:
            typed = True
            assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            os.write(screen, f"{token}\n".encode())
    assert os.waitpid(pid, 0)[1] == 0, shown
    text = shown.decode()
    assert f"{terminal.hub.url}hub/token" in text
    assert REACH in text
    assert "as admin." in text
    assert token not in text


def test_a_token_that_does_not_do_is_told_with_what_it_lacks(terminal: Terminal):
    hub = terminal.hub
    short = hub.api("POST", "users/alice/tokens", json={"expires_in": 1}).json()["token"]
    time.sleep(2)
    cases = {
        "not-a-token": f"does not know this token, or it has expired. Make another one at {hub.url}hub/token.",
        short: "or it has expired",
        hub.token_of("alice", ["read:users:name!user"]): f"lacks the scope {REACH}.",
        hub.token_of("alice", [REACH]): f"needs the scope {OURS}admin or {OURS}read or {OURS}write.",
    }
    for token, sentence in cases.items():
        Path("token").write_text(token)
        said = terminal.call("login", hub.url, "--token-file", "token")
        assert (said.code, said.out) == (1, "")
        assert sentence in said.err
        assert token not in said.err
        assert not logins.path().exists()
    reading = hub.token_of("admin", [REACH, f"{OURS}read"])
    Path("token").write_text(reading)
    assert f"lacks {OURS}admin" in terminal.call("login", hub.url, "--token-file", "token").out
    refused = terminal.call("hosts", "online", hub.runtime.settings.host_name)
    assert refused.err == f"remotegpu: This token may not do that: it needs the scope {OURS}admin.\n"
    assert terminal.call("hosts").code == 0


def test_another_service_at_the_address_is_told(terminal: Terminal):
    Path("token").write_text("not-a-token")
    said = terminal.call("login", f"{terminal.hub.url}nothing/here/", "--token-file", "token")
    assert said.code == 1
    assert "Traceback" not in said.err
    assert said.err.count("\n") == 1
