"""Public keys of SSH: what is taken, what is refused and why, and which runs let them in."""

import base64
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from remotegpu_hub.db import begin
from remotegpu_hub.domain import keys, users
from remotegpu_hub.errors import Conflict, Invalid, NotFound
from remotegpu_hub.orm import SshKey
from tests.worlds import ADMIN, World


def line(private: object, comment: str = "alice@laptop") -> str:
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)  # type: ignore[attr-defined]
    return f"{public.decode()} {comment}".strip()


def security_key() -> str:
    """What a FIDO token gives: a key and the application that it is for."""
    raw = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    parts = (b"sk-ssh-ed25519@openssh.com", raw, b"ssh:")
    blob = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return "sk-ssh-ed25519@openssh.com " + base64.b64encode(blob).decode()


ED = line(ed25519.Ed25519PrivateKey.generate())
PRIVATE = (
    ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
)


def add(world: World, user: str, text: str, name: str = "") -> SshKey:
    with begin(world.engine) as session:
        return keys.add(
            session, user=users.by_name(session, name=user), text=text, name=name, actor=ADMIN, now=world.now
        )


def remove(world: World, user: str, key_id: int) -> None:
    with begin(world.engine) as session:
        keys.remove(session, user=users.by_name(session, name=user), key_id=key_id, actor=ADMIN, now=world.now)


def names(world: World, user: str) -> list[str]:
    with begin(world.engine, read_only=True) as session:
        return [one.name for one in keys.of_user(session, user=users.by_name(session, name=user))]


def let_in(world: World) -> dict[int, str]:
    with begin(world.engine, read_only=True) as session:
        return keys.of_runs(session)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param(ED, "alice@laptop", id="ed25519"),
        pytest.param(f"\n  {ED}\n", "alice@laptop", id="with blanks around it"),
        pytest.param(line(ec.generate_private_key(ec.SECP256R1()), "王 的 电脑"), "王 的 电脑", id="ecdsa"),
        pytest.param(line(ec.generate_private_key(ec.SECP521R1()), ""), "ecdsa-sha2-nistp521", id="without a comment"),
        pytest.param(line(rsa.generate_private_key(65537, 2048)), "alice@laptop", id="rsa"),
        pytest.param(security_key(), "sk-ssh-ed25519@openssh.com", id="of a security key"),
    ],
)
def test_a_key_is_kept_without_its_comment(world: World, text: str, name: str) -> None:
    row = add(world, "bob", text)
    assert row.name == name
    assert row.public_key.split() == text.split()[:2]
    assert row.fingerprint.startswith("SHA256:")
    assert not row.fingerprint.endswith("=")
    assert names(world, "bob") == [name]
    assert world.audit("ssh_key.add")[-1].detail["after"]["fingerprint"] == row.fingerprint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(PRIVATE, "private key", id="the private one"),
        pytest.param("", "one line", id="nothing"),
        pytest.param("ssh-ed25519", "one line", id="no body"),
        pytest.param(f"{ED}\n{ED}", "one line", id="two"),
        pytest.param(f'command="rm -rf /" {ED}', "are not taken", id="with options"),
        pytest.param(line(dsa.generate_private_key(1024)), "are not taken", id="dsa"),
        pytest.param(line(rsa.generate_private_key(65537, 1024)), "this one has 1024", id="too short"),
        pytest.param(ED.replace("AAAA", "AAAB", 1), "damaged", id="another type inside"),
        pytest.param("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA", "damaged", id="cut off"),
        pytest.param("ssh-ed25519 ключ", "damaged", id="no base64"),
        pytest.param("ssh-rsa " + ED.split()[1], "damaged", id="called otherwise"),
    ],
)
def test_what_is_no_good_key_is_refused_in_plain_words(text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        keys.read(text)


def test_a_key_is_kept_once_and_a_removed_one_may_come_back(world: World) -> None:
    row = add(world, "bob", ED)
    add(world, "alice", ED, "mine too")
    with pytest.raises(Conflict, match="already"):
        add(world, "bob", ED)
    with pytest.raises(NotFound):
        remove(world, "alice", row.id)
    remove(world, "bob", row.id)
    with pytest.raises(NotFound):
        remove(world, "bob", row.id)
    assert names(world, "bob") == []
    add(world, "bob", ED)
    assert names(world, "alice") == ["mine too"]


@pytest.mark.parametrize("name", ["x" * 101, "two\nlines"])
def test_a_key_has_a_name_that_can_be_read(world: World, name: str) -> None:
    with pytest.raises(Invalid, match="name"):
        add(world, "bob", ED, name)


def test_there_is_an_end_of_keys(world: World) -> None:
    for _ in range(keys.MOST_KEYS):
        add(world, "bob", line(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(Conflict, match="remove one"):
        add(world, "bob", ED)


def test_the_owners_keys_open_the_runs_that_have_a_port_for_ssh_and_no_others(world: World) -> None:
    first, second = line(ed25519.Ed25519PrivateKey.generate(), ""), line(ed25519.Ed25519PrivateKey.generate(), "")
    added = add(world, "bob", first)
    add(world, "bob", second)
    add(world, "carol", ED)
    assert let_in(world) == {}
    run = world.run("bob", server="one", ports=["ssh"])
    world.run("bob", server="two", ports=["tensorboard"])
    keyless = world.run("alice", ports=["ssh"])
    assert let_in(world) == {run.id: f"{first}\n{second}\n", keyless.id: ""}
    remove(world, "bob", added.id)
    assert let_in(world)[run.id] == f"{second}\n"
    world.end(run.attempt)
    assert run.id not in let_in(world)
