"""`remotegpu ssh-keys` and `remotegpu environments access`."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@pytest.fixture
def public(tmp_path: Path) -> Path:
    raw = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path = tmp_path / "id_ed25519.pub"
    path.write_text(raw.decode() + " bob@laptop\n")
    return path


def test_keys_are_kept_listed_and_removed(remotegpu, world, public, tmp_path):
    assert remotegpu("ssh-keys", "list", "bob").out == "bob has no keys.\n"
    row = remotegpu("ssh-keys", "add", "bob", str(public), "--json").json["ssh_key"]
    assert row["name"] == "bob@laptop"
    assert row["fingerprint"] in remotegpu("ssh-keys", "list", "bob").out
    assert "already" in remotegpu("ssh-keys", "add", "bob", str(public), code=1).err
    assert "cannot be read" in remotegpu("ssh-keys", "add", "bob", str(tmp_path / "none"), code=2).err
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "not a text" in remotegpu("ssh-keys", "add", "bob", str(binary), code=2).err
    assert "not found" in remotegpu("ssh-keys", "remove", "alice", str(row["id"]), code=1).err
    remotegpu("ssh-keys", "remove", "bob", str(row["id"]))
    assert remotegpu("ssh-keys", "list", "bob", "--json").json["ssh_keys"] == []
    assert "Write a command" in remotegpu("ssh-keys", code=2).err


def test_a_key_comes_from_standard_input_under_a_name_of_ones_own(remotegpu, world, public, monkeypatch):
    with public.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        said = remotegpu("ssh-keys", "add", "bob", "--name", "of the lab")
    assert said.out.startswith("bob can log in with of the lab, SHA256:")


def test_the_ways_into_an_environment_are_ready_to_paste(remotegpu, world):
    run = world.run("bob", ports=["ssh", "tensorboard"])
    said = remotegpu("environments", "access", str(run.environment_id)).out
    assert "ssh -p 22000 USER@127.0.0.1" in said
    assert "http://127.0.0.1:26000/" in said
    assert "user/bob/proxy/6006/" in said
    plain = world.run("alice")
    assert "no ports" in remotegpu("environments", "access", str(plain.environment_id)).out
    world.end(run.attempt)
    assert "not found" in remotegpu("environments", "access", str(run.environment_id), code=1).err
