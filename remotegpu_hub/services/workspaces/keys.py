"""Routes of the caller's own SSH keys."""

from datetime import datetime
from typing import Any

from pydantic import Field

from ...domain import keys
from ...orm import SshKey
from ..api import Call, Needs, Route, Shape


class KeyShown(Shape):
    id: int
    name: str
    fingerprint: str = Field(description="SHA256, as `ssh-keygen -l` shows it.")
    public_key: str
    created_at: datetime


class NewKey(Shape):
    public_key: str = Field(max_length=8000, description="One line, as in `id_ed25519.pub`; never a private key.")
    name: str = Field("", max_length=100, description="Empty: the comment of the key.")


def shown(key: SshKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "fingerprint": key.fingerprint,
        "public_key": key.public_key,
        "created_at": key.created_at,
    }


def list_keys(call: Call) -> Any:
    return [shown(key) for key in keys.of_user(call.session, user=call.caller.person)], None


def add_key(call: Call) -> Any:
    given: NewKey = call.body
    key = keys.add(
        call.session, user=call.caller.person, text=given.public_key, name=given.name, actor=call.actor, now=call.now
    )
    return shown(key)


def remove_key(call: Call) -> None:
    keys.remove(call.session, user=call.caller.person, key_id=call.number("id"), actor=call.actor, now=call.now)


ROUTES = [
    Route("GET", "ssh-keys", "List your SSH keys", Needs.SELF, list_keys, answers=KeyShown, listing=True),
    Route("POST", "ssh-keys", "Add an SSH key; it counts within seconds, also where something runs", Needs.SELF,
          add_key, answers=KeyShown, body=NewKey, status=201),
    Route("DELETE", "ssh-keys/{id}", "Remove an SSH key", Needs.SELF, remove_key),
]  # fmt: skip
