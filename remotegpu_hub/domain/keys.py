"""Public keys of SSH: what users keep, and who may log in where. Private keys are never asked for and never kept."""

import base64
import binascii
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from ..errors import Conflict, Invalid, NotFound
from ..orm import ENDED, Allocation, PortMapping, PortService, SshKey, User
from .audit import Actor, record

KINDS: Final = (
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
)  # fmt: skip
RSA_BITS: Final = (2048, 8192)
MOST_KEYS: Final = 20
LONGEST_NAME: Final = 100


@dataclass(frozen=True)
class PublicKey:
    """One key, as RFC 4253 writes it."""

    kind: str
    body: str
    """Base64."""
    comment: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def line(self) -> str:
        """For `authorized_keys`: without the comment, which is the user's text."""
        return f"{self.kind} {self.body}"


def read(text: str) -> PublicKey:
    """Read the one line of a `.pub` file. Raises: Invalid, saying what to paste instead."""
    text = text.strip()
    if "PRIVATE KEY" in text:
        raise Invalid(
            "That is a private key: never give it to anybody. Paste the public one, the file that ends with .pub."
        )
    kind, _, rest = text.partition(" ")
    body, _, comment = rest.strip().partition(" ")
    if "\n" in text or "\r" in text or not body:
        raise Invalid("A public key is one line such as: ssh-ed25519 AAAA… you@laptop")
    if kind not in KINDS:
        raise Invalid("Keys of the kind {value} are not taken: make one with `ssh-keygen -t ed25519`.", value=kind[:40])
    try:
        key = load_ssh_public_key(f"{kind} {body}".encode())
        base64.b64decode(body, validate=True)
    except (ValueError, UnsupportedAlgorithm, binascii.Error, UnicodeEncodeError) as error:
        raise Invalid("This public key is damaged: copy the whole line again.") from error
    least, most = RSA_BITS
    if isinstance(key, RSAPublicKey) and not least <= key.key_size <= most:
        raise Invalid(
            "An RSA key has {least} to {most} bits, this one has {bits}: make one with `ssh-keygen -t ed25519`.",
            least=least, most=most, bits=key.key_size,
        )  # fmt: skip
    return PublicKey(kind, body, comment.strip())


def add(session: Session, *, user: User, text: str, name: str = "", actor: Actor, now: datetime) -> SshKey:
    """Keep a user's key; without a name it is called as its comment says. Raises: Invalid, Conflict."""
    key = read(text)
    name = (name or key.comment or key.kind).strip()
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise Invalid("A key's name has at most {count} characters, all of which can be seen.", count=LONGEST_NAME)
    session.execute(select(User.id).where(User.id == user.id).with_for_update())
    kept = of_user(session, user=user)
    if any(one.fingerprint == key.fingerprint for one in kept):
        raise Conflict("This key is there already.")
    if len(kept) >= MOST_KEYS:
        raise Conflict("There are {count} keys, and no more are kept: remove one first.", count=len(kept))
    row = SshKey(user_id=user.id, name=name, public_key=key.line, fingerprint=key.fingerprint, created_at=now)
    session.add(row)
    session.flush()
    record(session, actor=actor, action="ssh_key.add", entity="ssh_key", entity_id=row.id, now=now,
           after={"user": user.name, "name": name, "fingerprint": key.fingerprint})  # fmt: skip
    return row


def remove(session: Session, *, user: User, key_id: int, actor: Actor, now: datetime) -> SshKey:
    """Let nobody log in with a key any more; who is logged in stays so. Raises: NotFound."""
    row = session.get(SshKey, key_id, with_for_update=True)
    if row is None or row.user_id != user.id or row.deleted_at is not None:
        raise NotFound("The key")
    row.deleted_at = now
    session.flush()
    record(session, actor=actor, action="ssh_key.remove", entity="ssh_key", entity_id=row.id, now=now,
           before={"user": user.name, "name": row.name, "fingerprint": row.fingerprint})  # fmt: skip
    return row


def of_user(session: Session, *, user: User) -> list[SshKey]:
    """A user's keys, oldest first."""
    return list(session.scalars(live_of(user).order_by(SshKey.id)))


def live_of(user: User) -> Select[SshKey]:
    """A user's keys, in no order."""
    return select(SshKey).where(SshKey.user_id == user.id, SshKey.deleted_at.is_(None))


def authorized(session: Session, *, user_ids: Collection[int]) -> dict[int, str]:
    """The `authorized_keys` of each of these users; a file without a line where there is no key."""
    lines = dict.fromkeys(user_ids, "")
    rows = session.execute(
        select(SshKey.user_id, SshKey.public_key)
        .where(SshKey.deleted_at.is_(None), SshKey.user_id.in_(lines))
        .order_by(SshKey.id)
    )
    for user_id, line in rows:
        lines[user_id] += f"{line}\n"
    return lines


def of_runs(session: Session) -> dict[int, str]:
    """The `authorized_keys` of each run that has a port for SSH, by allocation."""
    owners = dict(
        session.execute(
            select(Allocation.id, Allocation.user_id)
            .join(PortMapping, PortMapping.allocation_id == Allocation.id)
            .where(Allocation.state != ENDED, PortMapping.open, PortMapping.service == PortService.SSH)
        )
        .tuples()
        .all()
    )
    lines = authorized(session, user_ids=set(owners.values())) if owners else {}
    return {allocation_id: lines[user_id] for allocation_id, user_id in owners.items()}
