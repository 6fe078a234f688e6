"""`remotegpu volumes`: list what is there, give one up."""

from dataclasses import replace

from remotegpu_hub.orm import VolumeKind
from remotegpu_hub.units import GIB


def test_volumes_are_listed_and_given_up_once_nobody_uses_them(remotegpu, world):
    assert remotegpu("volumes").out == "There are no volumes.\n"
    world.rules = replace(world.rules, volumes={VolumeKind.HOME: 10 * GIB, VolumeKind.SHARED: 5 * GIB})
    run = world.run("bob")
    rows = remotegpu("volumes", "--json").json["volumes"]
    assert [(row["kind"], row["workspace"], row["user"], row["size_bytes"] // GIB) for row in rows] == [
        ("home", "lab", "bob", 10), ("shared", "lab", None, 5),
    ]  # fmt: skip
    assert "all members" in remotegpu("volumes", "list").out
    home = str(rows[0]["id"])
    assert "Add --yes" in remotegpu("volumes", "delete", home, code=2).err
    assert "stop it first" in remotegpu("volumes", "delete", home, "--yes", code=1).err
    world.end(run.attempt)
    remotegpu("volumes", "delete", home, "--yes")
    assert [row["kind"] for row in remotegpu("volumes", "--json").json["volumes"]] == ["shared"]
    assert "not found" in remotegpu("volumes", "delete", home, "--yes", code=1).err
    assert world.audit("volume.delete")[-1].entity_id == int(home)
