"""The `remotegpu` command as a person and a program meet it: its words, its help, its exit codes, its database."""

import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from remotegpu_hub import db, migrations
from remotegpu_hub.app import RemoteGPUApp
from remotegpu_hub.cli import tables
from remotegpu_hub.cli.tables import Column

CONFIG = """
import sys
from remotegpu_hub.configure import configure
c = get_config()
print("noise of the operator")
c.JupyterHub.db_url = {url!r}
c.RemoteGPU.insecure_demo = True
c.RemoteGPU.currency = "CNY"
c.RemoteGPU.images = {{"local:lab": {{"display_name": "Lab", "cmd": ["jupyterhub-singleuser"]}}}}
configure(c)
"""


def every_command():
    paths = [()]
    for name, (group, _help) in RemoteGPUApp.subcommands.items():
        paths.append((name,))
        paths += [(name, verb) for verb in (group.subcommands if isinstance(group.subcommands, dict) else ())]
    return paths


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_the_help_of_every_command_reads_well(call, path):
    said = call(*path, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: {' '.join(('remotegpu', *path))}")
    assert "Options:" in said.out
    assert max(len(line) for line in said.out.splitlines()) <= 120
    assert not re.search(r"trait|Equivalent|\{|Unicode", said.out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param((), "Write a command.", id="nothing"),
        pytest.param(("fly",), "`remotegpu` has no `fly`", id="unknown command"),
        pytest.param(("hosts", "fly"), "`remotegpu hosts` has no `fly`", id="unknown verb"),
        pytest.param(("hosts", "maintenance"), "HOST is missing.", id="missing word"),
        pytest.param(("workspaces", "show", "a", "b"), "`b` is one word too many.", id="too many words"),
        pytest.param(("hosts", "--jsn"), "there is no option --jsn here.", id="unknown option"),
        pytest.param(("hosts", "--jsn=1"), "there is no option --jsn here.", id="unknown option with a value"),
        pytest.param(("hosts", "--Application.log_level=10"), "there is no option", id="another class's trait"),
        pytest.param(("quotas", "set", "--user"), "--user: expected one argument", id="missing value"),
        pytest.param(("--json", "hosts"), "Options stand behind the command", id="option first"),
        pytest.param(("workspaces", "create", "vision"), "--owner is missing", id="missing option"),
        pytest.param(("workspaces", "create", "v", "--owner", "a", "--kind", "huge"), "not `huge`", id="unknown kind"),
        pytest.param(("members", "set", "lab", "bob"), "Name what to change", id="nothing to change"),
        pytest.param(("hosts",), "There is no jupyterhub_config.py in this folder", id="no database named"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_sentence(call, words, said):
    told = call(*words)
    assert told.code == 2
    assert said in told.err
    assert told.err.startswith("remotegpu: ")
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err


def test_names_are_taken_as_they_were_typed(remotegpu, world):
    for name in ("~root", "'lab'", '"lab"', "None"):
        said = remotegpu("environments", "--workspace", name, code=1)
        assert said.err == f"remotegpu: The workspace {name} was not found.\n"


def test_columns_stand_under_their_titles_in_any_script():
    rows = [
        {"name": "vision", "shown": "视觉组"},
        {"name": "机器学习", "shown": "ML"},
        {"name": "é", "shown": "x\x1b[2J"},
    ]
    lines = tables.table([Column("NAME", "name"), Column("SHOWN", "shown", right=True), Column("END", "name")], rows)
    assert lines.splitlines() == [
        "NAME       SHOWN  END",
        "vision    视觉组  vision",
        "机器学习      ML  机器学习",
        "é          x\N{REPLACEMENT CHARACTER}[2J  é",
    ]


def test_the_database_is_the_one_that_the_hubs_configuration_names(call, folder, tmp_path):
    url = f"sqlite:///{tmp_path}/named.sqlite"
    (folder / "jupyterhub_config.py").write_text(CONFIG.format(url=url))
    (folder / "other.py").write_text(CONFIG.format(url=f"sqlite:///{tmp_path}/other.sqlite"))
    made = call("init", "--json")
    assert json.loads(made.out)["database"] == {"url": url, "made": True, "state": "current", "currency": "CNY"}
    assert made.err == "noise of the operator\n"
    assert (tmp_path / "named.sqlite").stat().st_mode & 0o777 == 0o600
    assert call("hosts", "--json").json == {"hosts": []}
    missing = call("hosts", "-f", "other.py")
    assert missing.code == 1
    assert f"There is no database {tmp_path}/other.sqlite, named by other.py." in missing.err
    assert not (tmp_path / "other.sqlite").exists()
    (folder / "url").write_text(url + "\n")
    assert call("hosts", "--db-file", "url", "-f", "other.py").code == 0


def test_a_database_given_on_the_hubs_command_line_is_found_by_what_the_hub_wrote(call, folder, tmp_path):
    from remotegpu_hub.runtime import Runtime, Settings

    url = f"sqlite:///{tmp_path}/running.sqlite"
    config = CONFIG.replace("c.JupyterHub.db_url = {url!r}\n", "").format()
    (folder / "jupyterhub_config.py").write_text(config)
    Runtime(Settings(db_url=url)).write(str(folder / "remotegpu-runtime.json"))
    assert call("init", "--json").json["database"]["url"] == url


def test_a_configured_database_in_memory_is_not_taken_for_one_with_nothing_in_it(call, folder):
    (folder / "jupyterhub_config.py").write_text('c = get_config()\nc.JupyterHub.db_url = "sqlite://"\n')
    told = call("hosts")
    assert (told.code, told.out) == (1, "")
    assert "no tables of ours" in told.err


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param("c = get_config()\n1 / 0\n", "does not load: ZeroDivisionError in line 2:", id="it raises"),
        pytest.param("c = get_config(\n", "does not load: SyntaxError", id="it is no Python"),
        pytest.param(
            "from remotegpu_hub.configure import configure\nc = get_config()\nconfigure(c)\n",
            "does not load: name what can be run",
            id="configure refuses it",
        ),
        pytest.param(
            "get_config().JupyterHub.db_kwargs = 'x'\n", "says of its database cannot be read", id="no kwargs"
        ),
        pytest.param(
            "c = get_config()\nc.JupyterHub.db_url = 'sqlite://'\nc.JupyterHub.db_kwargs = {'colour': 1}\n",
            "The db_kwargs of jupyterhub_config.py do not fit: Invalid argument(s) 'colour'",
            id="kwargs of nothing",
        ),
    ],
)
def test_a_configuration_that_does_not_load_is_told_in_a_sentence(call, folder, config, said):
    (folder / "jupyterhub_config.py").write_text(config)
    told = call("hosts")
    assert (told.code, told.out) == (1, "")
    assert said in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://hub:hunter2@127.0.0.1:9/hub", "Connection refused"),
        ("sqlite:////nowhere/hub.sqlite", "There is no"),
        ("nosuch://hub:hunter2@localhost/hub", "There is no driver for nosuch://hub:***@localhost/hub"),
        ("://hunter2", "is not a database URL"),
    ],
    ids=["down", "no folder", "no driver", "no URL"],
)
@pytest.mark.parametrize("words", [("hosts",), ("init",), ("upgrade-db",)], ids=" ".join)
def test_a_database_that_cannot_be_had_is_told_without_its_password(call, monkeypatch, url, said, words):
    monkeypatch.setenv("REMOTEGPU_DB_URL", url)
    told = call(*words)
    assert told.code == 1
    assert said in told.err
    assert told.err.count("\n") == 1
    assert "hunter2@" not in told.err
    assert "Traceback" not in told.err


def test_init_makes_the_tables_once(call, empty_database_url, monkeypatch):
    monkeypatch.setenv("REMOTEGPU_DB_URL", empty_database_url)
    refused = call("hosts")
    assert refused.code == 1
    assert "run `remotegpu init`" in refused.err
    made = call("init", "--currency", "EUR")
    assert made.code == 0
    assert "Made the tables" in made.out
    assert "the currency is EUR" in made.out
    assert "the currency is EUR" in call("init").out
    assert call("init", "--currency", "euro").code == 2
    assert "current already" in call("upgrade-db").out
    assert call("hosts").out.startswith("No host was seen yet")


@pytest.mark.parametrize(
    ("version", "said"),
    [(None, "`remotegpu_alembic_version`"), ("newer", "newer version")],
    ids=["lost version", "newer"],
)
def test_tables_of_another_version_are_left_alone(call, database_url, engine, monkeypatch, version, said):
    monkeypatch.setenv("REMOTEGPU_DB_URL", database_url)
    table = migrations.VERSION_TABLE
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM {table}"))
        if version:
            connection.execute(text(f"INSERT INTO {table} VALUES ('{version}')"))
    for words in (("hosts",), ("init",), ("upgrade-db",)):
        told = call(*words)
        assert told.code == 1
        assert said in told.err


def test_upgrade_db_makes_the_tables_of_an_empty_database(call, empty_database_url, monkeypatch):
    monkeypatch.setenv("REMOTEGPU_DB_URL", empty_database_url)
    assert call("upgrade-db", "--json").json["database"]["before"] == "empty"
    opened = db.open_engine(empty_database_url)
    assert migrations.state(opened) == "current"
    opened.dispose()


def test_the_audit_log_names_who_sat_at_the_terminal(remotegpu, world, monkeypatch):
    remotegpu("hosts", "maintenance", "host-1")
    assert world.audit()[-1].actor == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    if os.getuid() == 0:
        monkeypatch.setenv("SUDO_USER", "dana")
        remotegpu("hosts", "online", "host-1")
        assert world.audit()[-1].actor == "cli:dana"


def run(*words: str, url: str, **kwargs) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "remotegpu_hub.app", *words]
    env = {**os.environ, "REMOTEGPU_DB_URL": url}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, **kwargs)


def test_the_real_command_tells_programs_by_its_exit_code(sqlite_url, tmp_path):
    good = run("hosts", "--json", url=sqlite_url, cwd=tmp_path)
    assert (good.returncode, json.loads(good.stdout), good.stderr) == (0, {"hosts": []}, "")
    refused = run("hosts", "online", "nowhere", url=sqlite_url, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "remotegpu: The host nowhere was not found.\n"
    assert run("hosts", "--nowhere", url=sqlite_url, cwd=tmp_path).returncode == 2
    assert run("--version", url=sqlite_url, cwd=tmp_path).stdout.strip() == "0.1.0"


def test_a_reader_that_goes_away_is_no_error(sqlite_url, tmp_path):
    shell = f"{sys.executable} -m remotegpu_hub.app --help | head -c 1; echo ${{PIPESTATUS[0]}}"
    said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert said.stdout == "U0\n"
    assert said.stderr == ""
    assert Path(sqlite_url.removeprefix("sqlite:///")).exists()
