"""A command on a database that was named works with what the hub on that database wrote, not with another hub's."""

from dataclasses import replace
from pathlib import Path

from remotegpu_hub.runtime import Runtime, Settings
from tests.worlds import World

from .conftest import Call

HOOK = ("webhooks", "add", "https://example.org/hook", "--kind", "environment.failed")


def test_a_named_database_is_worked_on_without_what_another_hub_wrote_here(
    remotegpu: Call, world: World, hub_was_here: Settings, folder: Path
):
    file = str(folder / "remotegpu-runtime.json")
    ours = replace(hub_was_here, webhook_key="of this hub", ssh_user="gpu")
    other = replace(ours, db_url=f"sqlite:///{folder}/other.sqlite", webhook_key="of another hub")
    run = world.run("bob", ports=["ssh"])
    Runtime(other).write(file)
    assert "The hub's key" in remotegpu(*HOOK, code=1).err
    assert "USER@" in remotegpu("environments", "access", str(run.environment_id)).out
    assert remotegpu("policy", "dry-run", "--user", "gpus=0").code == 0, "it reads the database that was named"
    Runtime(ours).write(file)
    assert "whsec_" in remotegpu(*HOOK).out
    assert "gpu@" in remotegpu("environments", "access", str(run.environment_id)).out
