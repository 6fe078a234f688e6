"""Doctor and reconciler beside a hub that really runs, and after its death."""

import os
import signal

from ..gpu_hubs import GpuHub
from ..worlds import A100


def test_beside_a_hub_that_runs_and_after_its_death(call, folder, monkeypatch):
    with GpuHub(folder / "hub") as hub:
        monkeypatch.chdir(hub.folder)
        for name, value in hub._env().items():
            if name.startswith("TEST_HUB_"):
                monkeypatch.setenv(name, value)
        life = hub.start_server("alice", {"workspace": "lab", "gpus": 2, "gpu_model": A100})

        (row,) = call("environments", "--running", "--json").json["environments"]
        assert (row["user"], row["workspace"], len(row["run"]["gpus"])) == ("alice", "lab", 2)
        found = {(one["subject"], one["level"]) for one in call("doctor", "--json").json["checks"]}
        assert {("hub", "ok"), ("runs", "ok"), ("configuration", "ok"), ("counters", "ok")} <= found
        assert not {key for key in found if key[1] == "problem"}

        refused = call("reconcile")
        assert refused.code == 1
        assert "The hub runs" in refused.err
        monkeypatch.setenv("JUPYTERHUB_API_TOKEN", hub.token)
        asked = call("reconcile")
        assert (asked.code, asked.out) == (0, "Everything that is held runs, and nothing else does.\n")
        monkeypatch.delenv("JUPYTERHUB_API_TOKEN")

        hub.kill()
        kept = call("reconcile")
        assert (kept.code, kept.out) == (0, "Everything that is held runs, and nothing else does.\n")
        os.kill(life.pid, 0)  # the hub finds it again when it starts
        os.kill(life.pid, signal.SIGKILL)
        said = []  # a run that began a moment ago is left alone
        hub.until(lambda: said.append(call("reconcile", "--json").json["repairs"]) or said[-1], "the run was repaired")
        assert [(one["fault"], one["outcome"]) for one in said[-1]] == [("ended", "repaired")]
        assert hub.open_runs() == []
        assert ("hub", "warn") in {(one["subject"], one["level"]) for one in call("doctor", "--json").json["checks"]}
