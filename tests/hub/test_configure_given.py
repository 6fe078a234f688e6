"""Whatever way the operator set something above `configure(c)`, in a file as the hub loads it, it is there afterwards;
what cannot work is one sentence; and who only reads the file leaves nothing behind."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import Spawner
from traitlets.config import Config, PyFileConfigLoader

from remotegpu_hub.configure import CUSTOM_SCOPES, SERVER_TOKEN_SCOPES, database_of
from remotegpu_hub.hub.kube import RemoteGPUKubeSpawner
from remotegpu_hub.hub.local import DemoSpawner
from remotegpu_hub.hub.wiring import SERVICES, missing_services, overwritten

REACH = [f"access:services!service={service}" for service in SERVICES]
EVERYBODY = {*REACH, "custom:remotegpu:read", "custom:remotegpu:write", "custom:remotegpu:admin"}
ABOVE = """
from remotegpu_hub.configure import configure
c = get_config()
c.RemoteGPU.insecure_demo = True
c.RemoteGPU.images = {"local:lab": {"display_name": "Lab", "cmd": ["jupyterhub-singleuser"]}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(lines: str = "", below: str = "") -> Config:
    """The configuration as any program reads it."""
    Path("jupyterhub_config.py").write_text(f"{ABOVE}{lines}\nconfigure(c)\n{below}\n")
    return PyFileConfigLoader("jupyterhub_config.py", path=".").load_config()


def hub_of(lines: str = "", below: str = "") -> JupyterHub:
    """A hub with that configuration, as its options end up; it is not started."""
    return JupyterHub(config=loaded(lines, below))


def names(things: list[dict[str, Any]]) -> list[str]:
    return [one["name"] for one in things]


@pytest.mark.parametrize(
    "lines",
    ['c.JupyterHub.services = [{"name": "culler"}]', 'c.JupyterHub.services.append({"name": "culler"})',
     'c.JupyterHub.services.extend([{"name": "culler"}])', 'c.JupyterHub.services += [{"name": "culler"}]'],
    ids=["set", "appended", "extended", "added"],
)  # fmt: skip
def test_the_operators_services_stay(lines: str) -> None:
    if "+=" in lines:
        lines = f"c.JupyterHub.services = []\n{lines}"
    assert names(hub_of(lines).services) == ["culler", *SERVICES]


def test_a_bare_configuration_gets_spawner_services_and_named_servers() -> None:
    hub = hub_of()
    assert hub.spawner_class is DemoSpawner
    assert names(hub.services) == list(SERVICES)
    assert hub.allow_named_servers is True
    assert os.listdir() == ["jupyterhub_config.py"], "nothing is written where no hub runs"


def test_a_service_may_be_appended_below_too() -> None:
    hub = hub_of(below='c.JupyterHub.services.append({"name": "late"})')
    assert names(hub.services) == [*SERVICES, "late"]
    assert missing_services(hub) == []


@pytest.mark.parametrize(
    "lines",
    ["c.JupyterHub.load_roles = [ROLE]", "c.JupyterHub.load_roles.append(ROLE)", "c.JupyterHub.load_roles.extend([ROLE])"],
    ids=["set", "appended", "extended"],
)  # fmt: skip
def test_the_operators_own_user_role_reaches_our_services(lines: str) -> None:
    """The hub ignores `extra_user_scopes` when the role is set."""
    hub = hub_of(f'ROLE = {{"name": "user", "scopes": ["self"]}}\n{lines}')
    assert names(hub.load_roles) == ["user", "remotegpu-services"]
    assert set(hub.load_roles[0]["scopes"]) == {"self", *EVERYBODY}
    assert not hub.extra_user_scopes


def test_a_user_role_that_sets_no_scopes_leaves_them_to_the_extra_ones() -> None:
    hub = hub_of('c.JupyterHub.load_roles = [{"name": "user", "description": "ours"}]')
    assert hub.load_roles[0] == {"name": "user", "description": "ours"}
    assert hub.extra_user_scopes == EVERYBODY


@pytest.mark.parametrize(
    "lines",
    ['= {"list:services"}', '= ["list:services"]', '.update({"list:services"})', '.add("list:services")'],
    ids=["set", "list", "updated", "added"],
)
def test_the_operators_extra_user_scopes_stay(lines: str) -> None:
    if lines.startswith("= ["):
        config = loaded(f"c.JupyterHub.extra_user_scopes {lines}")
        assert config.JupyterHub.extra_user_scopes == {"list:services", *EVERYBODY}
        return
    gap = " " if lines.startswith("=") else ""
    assert hub_of(f"c.JupyterHub.extra_user_scopes{gap}{lines}").extra_user_scopes == {"list:services", *EVERYBODY}


@pytest.mark.parametrize("how", [" = {0}", ".update({0})"], ids=["set", "updated"])
def test_the_operators_custom_scopes_and_template_variables_stay(how: str) -> None:
    scopes = how.format('{"custom:mine:read": {"description": "mine"}}')
    variables = how.format('{"announcement": "hello"}')
    hub = hub_of(f"c.JupyterHub.custom_scopes{scopes}\nc.JupyterHub.template_vars{variables}")
    assert set(hub.custom_scopes) == {"custom:mine:read", *CUSTOM_SCOPES}
    assert hub.template_vars["announcement"] == "hello"
    assert hub.template_vars["remotegpu_insecure_demo"] is True


@pytest.mark.parametrize(
    "how", [' = ["/own"]', '.append("/own")', '.insert(0, "/own")', '.prepend(["/own"])'],
    ids=["set", "appended", "inserted", "prepended"],
)  # fmt: skip
def test_the_operators_templates_come_before_ours(how: str) -> None:
    own, ours = hub_of(f"c.JupyterHub.template_paths{how}").template_paths
    assert own == "/own"
    assert ours.endswith("remotegpu_hub/hub/templates")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", [*SERVER_TOKEN_SCOPES, *REACH]),
        ("c.Spawner.server_token_scopes = []", [*SERVER_TOKEN_SCOPES, *REACH]),
        ('c.Spawner.server_token_scopes = ["users:activity!user"]', ["users:activity!user", *REACH]),
        ('c.Spawner.server_token_scopes.append("users:activity!user")', ["users:activity!user", *REACH]),
        (f"c.Spawner.server_token_scopes = {REACH[:1]!r}", REACH),
    ],
    ids=["not set", "empty", "set", "appended", "ours already"],
)
def test_the_token_of_a_server_reaches_our_services_and_what_the_operator_said(lines: str, expected: list[str]) -> None:
    assert Spawner(config=loaded(lines)).server_token_scopes == expected


@pytest.mark.parametrize("word", ["def", "async def"])
def test_a_function_that_gives_the_scopes_of_a_server_is_still_asked(word: str) -> None:
    spawner = Spawner(
        config=loaded(f"{word} scopes(spawner): return ['read:users!user']\nc.Spawner.server_token_scopes = scopes")
    )
    assert asyncio.run(spawner.server_token_scopes(spawner)) == ["read:users!user", *REACH]


@pytest.mark.parametrize("nothing", ["[]", "None"])
def test_a_function_that_gives_no_scopes_gives_the_usual_ones(nothing: str) -> None:
    """As the hub does; with ours alone, a server could not even be reached."""
    spawner = Spawner(config=loaded(f"c.Spawner.server_token_scopes = lambda spawner: {nothing}"))
    assert asyncio.run(spawner.server_token_scopes(spawner)) == [*SERVER_TOKEN_SCOPES, *REACH]


def test_the_hub_keeps_its_own_ways() -> None:
    hub = hub_of(
        'c.JupyterHub.base_url = "/deep/"\nc.JupyterHub.allow_named_servers = False\n'
        "c.JupyterHub.named_server_limit_per_user = 3\nc.Spawner.pre_spawn_hook = print\n"
        "c.Spawner.start_timeout = 600\nc.Spawner.environment = {'OWN': '1'}"
    )
    assert (hub.base_url, hub.allow_named_servers, hub.named_server_limit_per_user) == ("/deep/", False, 3)
    spawner = Spawner(config=hub.config)
    assert (spawner.pre_spawn_hook, spawner.start_timeout, spawner.environment) == (print, 600, {"OWN": "1"})
    assert overwritten(hub) == []


@pytest.mark.parametrize(
    ("below", "told"),
    [
        ('c.JupyterHub.spawner_class = "simple"', "spawner_class became SimpleLocalProcessSpawner"),
        ("c.JupyterHub.services = []", "the service workspaces is gone"),
        ("c.JupyterHub.load_roles = []", "the role remotegpu-services is gone"),
    ],
    ids=["spawner", "services", "roles"],
)
def test_what_is_overwritten_below_is_told_in_a_sentence(below: str, told: str) -> None:
    sentences = overwritten(hub_of(below=below))
    assert any(sentence.startswith(told) and "configure(c)" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([], ("sqlite:///{cwd}/file.sqlite", {"pool_size": 1})),
        (["--JupyterHub.db_kwargs={'pool_size': 3}"], ("sqlite:///{cwd}/file.sqlite", {"pool_size": 3})),
        (["--db=line.sqlite"], ("sqlite:///{cwd}/line.sqlite", {"pool_size": 1})),
        (["--db=postgresql://u@h/d"], ("postgresql+psycopg://u@h/d", {"pool_size": 1})),
    ],
    ids=["the file's", "options", "a file", "a server"],
)
def test_the_database_of_the_hubs_command_line_wins(line: list[str], expected: tuple[str, dict[str, Any]]) -> None:
    c = Config({"JupyterHub": {"db_url": "file.sqlite"}})
    c.JupyterHub.db_kwargs.update({"pool_size": 1})
    hub = JupyterHub()
    hub.parse_command_line(line)
    assert database_of(c, hub) == (expected[0].format(cwd=Path.cwd()), expected[1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "sqlite:///{cwd}/jupyterhub.sqlite"),
        ("file.sqlite", "sqlite:///{cwd}/file.sqlite"),
        ("sqlite:////srv/hub.sqlite", "sqlite:////srv/hub.sqlite"),
        ("sqlite+pysqlite:///hub.sqlite?timeout=3", "sqlite+pysqlite:///{cwd}/hub.sqlite?timeout=3"),
        ("postgresql+psycopg2://u:p%40w@h:5/d?sslmode=require", "postgresql+psycopg2://u:p%40w@h:5/d?sslmode=require"),
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
    ],
    ids=[
        "not set",
        "a path",
        "an absolute path",
        "a driver and an option",
        "another driver, and a password with an at sign",
        "the old name",
    ],
)
def test_every_spelling_of_a_database_is_the_hubs(given: str | None, expected: str) -> None:
    c = Config({"JupyterHub": {"db_url": given} if given else {}})
    assert database_of(c)[0] == expected.format(cwd=Path.cwd())


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('c.KubeSpawner.profile_list = [{"display_name": "x"}]', "profile_list"),
        ("c.RemoteGPU.images = {}", "c.RemoteGPU.images"),
        ('c.RemoteGPU.images = {"lab": {"cmd": ["x"]}}', "'lab'"),
        ('c.RemoteGPU.images = {"local:lab": {"display_name": "x"}}', "cmd"),
        ('c.RemoteGPU.images = {"local:lab": {"cmd": "jupyterhub-singleuser"}}', "cmd"),
        ('c.RemoteGPU.images = {"local:lab": {"cmd": ["x"], "args": "--debug"}}', "args"),
        ('c.RemoteGPU.images = {"local:lab": "jupyterhub-singleuser"}', "cmd"),
        ("c.RemoteGPU.insecure_demos = True", "insecure_demos"),
        ('c.RemoteGPU.port_ranges = {"ssh": (40000, 30000)}', "port range"),
        ('c.RemoteGPU.port_ranges = {"ssh": (1, 70000)}', "port range"),
        ('c.RemoteGPU.port_ranges = {"ssh": 30000}', "'ssh'"),
        ('c.RemoteGPU.port_ranges = {"ssh": ("30000", "30100")}', "'ssh'"),
        ('c.RemoteGPU.port_ranges = {"ssh": (30000, 30100, 30200)}', "'ssh'"),
        ('c.RemoteGPU.port_ranges = {"ssh": (0, 100)}', "'ssh'"),
        ('c.RemoteGPU.port_ranges = {"ssh": (30000.5, 30100)}', "'ssh'"),
        ('c.RemoteGPU.port_ranges = {"ftp": (30000, 30100)}', "tensorboard"),
        ('c.RemoteGPU.default_memory = "2 gigs"', "default_memory: 2 gigs"),
        ('c.RemoteGPU.default_cpu = "one"', "default_cpu: one"),
        ('c.RemoteGPU.reserve_cpu = "-1"', "reserve_cpu: -1"),
        ('c.RemoteGPU.reserve_memory = "much"', "reserve_memory: much"),
        ('c.RemoteGPU.personal_budget = "$20"', "personal_budget: $20"),
        ('c.RemoteGPU.personal_quota = {"gpu": 1}', "'gpu'"),
        ('c.RemoteGPU.personal_quota = {"environments": "few"}', "few"),
        ('c.RemoteGPU.personal_quota = {"environments": -1}', "-1"),
        ('c.RemoteGPU.personal_quota = {"environments": 1.9}', "1.9"),
        ('c.RemoteGPU.personal_quota = {"memory": "a lot"}', "personal_quota['memory']: a lot"),
        ('c.RemoteGPU.gpu_shares = {"A100-80GB": "4"}', "gpu_shares: '4'"),
        ('c.RemoteGPU.simulated_gpus = ["A100-80GB"]', "expected a dict"),
        ('c.RemoteGPU.simulated_gpus = [{"modle": "A100-80GB"}]', "modle"),
        ('c.RemoteGPU.policy = "best"', "policy"),
        ("c.RemoteGPU.max_gpus = 0", "max_gpus"),
        ('c.JupyterHub.services = [{"name": "billing"}]', "billing"),
        ('c.JupyterHub.services.append({"name": "workspaces"})', "workspaces"),
        ("configure(c)", "once"),
        ('c.JupyterHub.db_url = "mysql://u:hunter2@h/d"', "PostgreSQL"),
        ('c.JupyterHub.db_url = "://u:hunter2@h/d"', "not a database URL"),
        ('c.JupyterHub.db_url = "sqlite://"', "in memory"),
        ('c.JupyterHub.db_url = "sqlite:///file:x?mode=memory&uri=true"', "in memory"),
    ],
)
def test_what_cannot_work_is_one_sentence(line: str, word: str) -> None:
    with pytest.raises(SystemExit) as refused:
        loaded(line)
    sentence = str(refused.value)
    assert sentence.startswith("remotegpu-hub: ")
    assert word in sentence
    assert "\n" not in sentence
    assert "hunter2" not in sentence


@pytest.mark.parametrize("line", ["", "c.RemoteGPU.insecure_demo = False"], ids=["not said", "said no"])
def test_no_isolation_is_only_had_by_asking_for_it(line: str) -> None:
    Path("jupyterhub_config.py").write_text(
        ABOVE.replace("c.RemoteGPU.insecure_demo = True\n", "") + line + "\nconfigure(c)\n"
    )
    config = PyFileConfigLoader("jupyterhub_config.py", path=".").load_config()
    assert config.JupyterHub.spawner_class.__name__ == "LocalSpawner"
    assert config.JupyterHub.template_vars["remotegpu_insecure_demo"] is False


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "jupyterhub", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("option", ["--show-config", pytest.param("--generate-certs", marks=pytest.mark.prove)])
def test_a_hub_that_only_shows_or_makes_something_prepares_nothing(option: str) -> None:
    """Another hub may be running with this very file. With --generate-config the hub never reads it."""
    loaded(below="c.JupyterHub.db_url = 'sqlite:///elsewhere.sqlite'")
    Path("remotegpu-runtime.json").write_text("the running hub's")
    done = run(option)
    assert done.returncode == 0, done.stderr
    assert Path("remotegpu-runtime.json").read_text() == "the running hub's"
    assert not Path("jupyterhub.sqlite").exists()


def test_a_hub_without_our_services_says_why_it_ends() -> None:
    """The role that names them makes it fail, in words of its own."""
    loaded(below="c.JupyterHub.services = []")
    done = run()
    assert done.returncode != 0
    assert "remotegpu-hub: the service workspaces is gone" in done.stderr


def test_a_hub_without_a_database_says_why_it_ends() -> None:
    loaded()
    done = run("--no-db")
    assert done.returncode != 0
    assert "remotegpu-hub: a database in memory cannot be shared" in done.stderr
    assert not Path("remotegpu-runtime.json").exists()


KUBERNETES = """
c.RemoteGPU.insecure_demo = False
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
c.RemoteGPU.images = {"registry.example.org/team/torch:2.9": {"display_name": "PyTorch", "digest": "sha256:" + "a" * 64}}
"""


def test_plain_kubespawner_becomes_ours_with_defaults_that_suit_a_cluster() -> None:
    hub = hub_of(KUBERNETES)
    assert hub.spawner_class is RemoteGPUKubeSpawner
    assert hub.cleanup_servers is False, "an upgrade of the hub leaves environments alone"
    assert hub.config.Spawner.poll_interval == 10
    assert hub.config.Spawner.start_timeout == 600


def test_what_the_operator_said_of_the_cluster_stays() -> None:
    hub = hub_of(f"{KUBERNETES}c.KubeSpawner.start_timeout = 77\nc.JupyterHub.cleanup_servers = True\n")
    assert hub.cleanup_servers is True
    assert "start_timeout" not in hub.config.Spawner
    assert hub.config.KubeSpawner.start_timeout == 77


def test_an_own_subclass_of_ours_stays() -> None:
    lines = f"""{KUBERNETES}
from remotegpu_hub.hub.kube import RemoteGPUKubeSpawner
class Own(RemoteGPUKubeSpawner):
    pass
c.JupyterHub.spawner_class = Own
"""
    assert hub_of(lines).spawner_class.__name__ == "Own"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        pytest.param('c.RemoteGPU.images = {"local:lab": {"cmd": ["x"]}}', "registry.example.org", id="a local image"),
        pytest.param('c.RemoteGPU.images = {"team/torch:2.9": {}}', "needs its digest", id="no digest"),
        pytest.param(
            'c.RemoteGPU.images = {"team/torch": {"digest": "sha256:12"}}', "needs its digest", id="half a digest"
        ),
        pytest.param(
            'c.RemoteGPU.pools = [{"name": "a", "bind": "dra"}]', "has no bind", id="an unknown key of a pool"
        ),
        pytest.param('c.RemoteGPU.pools = [{"name": "a", "binding": "x"}]', "not a binding", id="an unknown binding"),
        pytest.param('c.RemoteGPU.home_size = "much"', "home_size", id="a size that is none"),
        pytest.param("c.KubeSpawner.enable_user_namespaces = True", "one namespace", id="a namespace for each user"),
        *(
            pytest.param(f"c.RemoteGPU.ingress = {given!r}", word, id=f"Ingress: {about}")
            for given, word, about in (
                ({"host": "gpu.example.org"}, "{run} and {service}", "two would share it"),
                ({"host": "{service}-{run}.example.org", "clas": "nginx"}, "clas", "unknown word"),
                ({"path": "/{run}/{service}/"}, "needs a host", "no host"),
                ({"host": "http://{service}-{run}.example.org"}, "needs a host", "a URL"),
                ({"host": "{service}-{run}.example.org", "path": "x"}, "needs a host", "no path"),
                ({"host": "{service}-{run}.example.org", "tls_secret": True}, "texts", "no text"),
            )
        ),
        pytest.param('c.KubeSpawner.profile_list = [{"display_name": "x"}]', "profile_list", id="profiles"),
        pytest.param(
            "from kubespawner import KubeSpawner\nclass Mine(KubeSpawner):\n    pass\nc.JupyterHub.spawner_class = Mine",
            "derive it from remotegpu_hub.hub.kube.RemoteGPUKubeSpawner",
            id="a spawner of one's own without us",
        ),
    ],
)
def test_what_cannot_work_on_a_cluster_is_told_in_a_sentence(lines: str, told: str) -> None:
    with pytest.raises(SystemExit) as end:
        loaded(f"{KUBERNETES}{lines}\n")
    assert told in str(end.value)
    assert "\n" not in str(end.value)


def test_a_foreign_spawner_is_refused_and_not_replaced_in_silence() -> None:
    lines = "from jupyterhub.spawner import LocalProcessSpawner as Other\nclass Mine(Other):\n    pass\nc.JupyterHub.spawner_class = Mine\n"
    with pytest.raises(SystemExit) as end:
        loaded(lines)
    assert "derive it from remotegpu_hub.hub.local.LocalSpawner" in str(end.value)
