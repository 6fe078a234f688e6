"""Routes of SSH keys: one's own, and those of a named user for admins of the hub."""

from datetime import datetime
from typing import Any

from pydantic import Field

from ...domain import keys, users
from ...errors import NotFound
from ...orm import SshKey, User
from ..api import Call, Needs, Route, Shape
from ..paging import Paging, page


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


def _listed(call: Call, user: User) -> Any:
    return page(call.session, keys.live_of(user), call.query, sorts={"id": (SshKey.id,)}, sort="id", shown=shown)


def list_keys(call: Call) -> Any:
    return _listed(call, call.caller.person)


def add_key(call: Call) -> Any:
    given: NewKey = call.body
    key = keys.add(
        call.session, user=call.caller.person, text=given.public_key, name=given.name, actor=call.actor, now=call.now
    )
    return shown(key)


def remove_key(call: Call) -> None:
    keys.remove(call.session, user=call.caller.person, key_id=call.number("id"), actor=call.actor, now=call.now)


def _named(call: Call) -> User:
    """The user of the path: the caller, or for an admin of the hub anybody. Raises: NotFound."""
    name, caller = call.path["user"], call.caller
    if caller.hub_admin:
        if call.body is None:
            return users.by_name(call.session, name=name)
        return users.named(call.session, name=name, now=call.now)
    if caller.user is None or caller.user.name != name:
        raise NotFound("The user")
    return caller.user


def list_keys_of_user(call: Call) -> Any:
    return _listed(call, _named(call))


def add_key_of_user(call: Call) -> Any:
    given: NewKey = call.body
    key = keys.add(
        call.session, user=_named(call), text=given.public_key, name=given.name, actor=call.actor, now=call.now
    )
    return shown(key)


def remove_key_of_user(call: Call) -> None:
    keys.remove(call.session, user=_named(call), key_id=call.number("id"), actor=call.actor, now=call.now)


ROUTES = [
    Route("GET", "ssh-keys", "List your SSH keys", Needs.SELF, list_keys, answers=KeyShown, query=Paging,
          listing=True),
    Route("POST", "ssh-keys", "Add an SSH key; it counts within seconds, also where something runs", Needs.SELF,
          add_key, answers=KeyShown, body=NewKey, status=201),
    Route("DELETE", "ssh-keys/{id}", "Remove an SSH key", Needs.SELF, remove_key),
    Route("GET", "users/{user}/ssh-keys", "List the SSH keys of a user: of yourself, or as a hub admin", Needs.SELF,
          list_keys_of_user, answers=KeyShown, query=Paging, listing=True),
    Route("POST", "users/{user}/ssh-keys", "Add an SSH key of a user", Needs.SELF, add_key_of_user, answers=KeyShown,
          body=NewKey, status=201),
    Route("DELETE", "users/{user}/ssh-keys/{id}", "Remove an SSH key of a user", Needs.SELF, remove_key_of_user),
]  # fmt: skip
