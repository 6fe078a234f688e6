"""Audit entries as people read them: who, what, of which thing, and each value before and after."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup
from sqlalchemy import select
from sqlalchemy.orm import Session

from ... import words
from ...orm import Allocation, AuditEntry, Environment, Flavor, Gpu, Host, Image, Price, User, Workspace
from ..pages import View

ACTIONS: Final[dict[str, str]] = {
    "allocation.admit": "Start admitted",
    "allocation.activate": "Run began",
    "allocation.ending": "End begun",
    "allocation.release": "Run ended",
    "allocation.refused": "Start refused",
    "allocation.repair": "Run repaired",
    "budget.put": "Budget set",
    "budget.remove": "Budget taken away",
    "budget.spare": "End for a spent budget taken back",
    "budget.stop": "End for a spent budget announced",
    "environment.delete": "Environment deleted",
    "environment.rename": "Environment renamed",
    "flavor.put": "Flavor set",
    "flavor.retire": "Flavor retired",
    "gpu.status": "GPU taken out or put back",
    "host.drain": "Host drained",
    "host.found": "Host found",
    "host.status": "Host taken out or put back",
    "image.put": "Image set",
    "image.retire": "Image has a newer digest",
    "invitation.create": "User invited",
    "invitation.decline": "Invitation declined",
    "invitation.take_back": "Invitation taken back",
    "member.put": "Member set",
    "member.remove": "Member removed",
    "price.put": "Price set",
    "quota.put": "Limits set",
    "quota_request.approve": "Request approved",
    "quota_request.ask": "More asked for",
    "quota_request.refuse": "Request refused",
    "quota_request.withdraw": "Request taken back",
    "reconcile": "Repaired by hand",
    "ssh_key.add": "SSH key added",
    "ssh_key.remove": "SSH key removed",
    "user.deleted": "User deleted",
    "user.renamed": "User renamed",
    "user.seen": "User seen first",
    "volume.delete": "Volume given up",
    "volume.size": "Volume sized",
    "webhook.again": "Delivery tried again",
    "webhook.create": "Webhook made",
    "webhook.edit": "Webhook changed",
    "webhook.remove": "Webhook removed",
    "webhook.test": "Webhook tested",
    "workspace.archive": "Workspace archived",
    "workspace.create": "Workspace made",
    "workspace.renamed": "Workspace renamed",
    "workspace.reopen": "Workspace reopened",
    "workspace.update": "Workspace changed",
}
"""What is told of an action; of one that is not here, its own name."""
KINDS: Final[dict[str, str]] = {
    "allocation": "Run",
    "environment": "Environment",
    "flavor": "Flavor",
    "gpu": "GPU",
    "host": "Host",
    "image": "Image",
    "price": "Price",
    "quota": "Limits",
    "quota_request": "Request",
    "ssh_key": "SSH key",
    "user": "User",
    "volume": "Volume",
    "webhook": "Webhook",
    "workspace": "Workspace",
}
REASONS: Final[dict[str, str]] = {
    "user": "its user stopped it",
    "admin": "an admin stopped it",
    "exited": "it ended by itself",
    "failed": "it failed",
    "timeout": "it did not answer in time",
    "ghost": "its start was given up",
    "orphan": "the hub had lost it",
    "idle": "it was idle",
    "budget": "the budget was spent",
    "quota": "a limit was reached",
    "evicted": "the cluster evicted it",
    "oom_killed": "it ran out of memory",
    "node_lost": "its host was lost",
    "pod_deleted": "its pod was deleted",
    "image_pull_failed": "its image could not be pulled",
    "unschedulable": "the cluster had no room for it",
    "drained": "its host was taken out of work",
}
"""Why a run ended, by `orm.EndReason`."""
FIELDS: Final[dict[str, tuple[str, str]]] = {
    "action": ("When it is spent", "term"),
    "amount": ("Budget a month", "money"),
    "answer": ("Answer", ""),
    "budget": ("Budget a month", "money"),
    "cpu_millis": ("Cores", "cpu"),
    "display_name": ("Display name", ""),
    "effective_from": ("From", "moment"),
    "ended_at": ("Ended at", "moment"),
    "ends_at": ("Ends at", "moment"),
    "digest": ("Digest", ""),
    "environment": ("Environment", ""),
    "environments": ("Running environments", "environments"),
    "fault": ("What was wrong", "term"),
    "gpu_hours": ("GPU hours a month", ""),
    "gpu_millis": ("GPUs", "gpus"),
    "gpu_model": ("Model", ""),
    "gpu_slots": ("GPUs", ""),
    "granted": ("Granted", ""),
    "host": ("Host", ""),
    "grace_seconds": ("Time to end", "seconds"),
    "mark": ("Process or pod", ""),
    "memory_bytes": ("Main memory", "memory"),
    "message": ("Message", "sentence"),
    "name": ("Name", ""),
    "owner": ("Owner", ""),
    "policy": ("Placement", ""),
    "reason": ("Why", "reason"),
    "reasons": ("Why", ""),
    "reference": ("Reference", ""),
    "resource": ("Resource", ""),
    "retired": ("Retired", ""),
    "role": ("Role", "term"),
    "runs": ("Runs", ""),
    "spared": ("Runs that go on", ""),
    "scope": ("Level", "term"),
    "server_name": ("Server", ""),
    "size_bytes": ("Size", "memory"),
    "status": ("Status", "term"),
    "storage_bytes": ("Storage", "memory"),
    "time_zone": ("Time zone", ""),
    "unit_price": ("Unit price", "money"),
    "user": ("User", ""),
    "uuid": ("UUID", ""),
    "visibility": ("Who may use it", "term"),
    "wanted": ("Wanted", ""),
    "warn_percent": ("Warning at", "percent"),
    "workspace": ("Workspace", ""),
}
"""How a value of the detail is called, and how it is written."""


@dataclass(frozen=True)
class Line:
    """One value of an entry: what it was and what it became, or a fact alone."""

    label: str
    before: Any
    after: Any
    changed: bool


@dataclass(frozen=True)
class Told:
    """An entry as the page shows it."""

    entry: AuditEntry
    what: str
    kind: str
    thing: str
    lines: list[Line]


def tell(session: Session, view: View, entries: Sequence[AuditEntry]) -> list[Told]:
    """Say a page of entries: one more statement for each kind of thing in it."""
    names = _names(session, entries)
    told = []
    for one in entries:
        thing = names.get((one.entity, one.entity_id or 0)) or str(one.entity_id or "")
        what, kind = _said(view, ACTIONS, one.action), _said(view, KINDS, one.entity)
        told.append(Told(one, what, kind, thing, _lines(view, one, thing)))
    return told


def why(view: View, reason: str) -> str:
    """Why a run ended, in words; a reason that somebody wrote stays as it is."""
    return _said(view, REASONS, reason)


def _said(view: View, table: dict[str, str], code: str) -> str:
    return view.say(table[code]) if code in table else code


_NAMES: Final[dict[str, Any]] = {
    "environment": select(Environment.id, User.name + " / " + Environment.display_name).join(Environment.user),
    "allocation": select(Allocation.id, User.name + " / " + Environment.display_name)
    .join(Environment, Environment.id == Allocation.environment_id)
    .join(User, User.id == Allocation.user_id),
    "flavor": select(Flavor.id, Flavor.name),
    "gpu": select(Gpu.id, Host.name + " / " + Gpu.uuid).join(Gpu.host),
    "host": select(Host.id, Host.name),
    "image": select(Image.id, Image.display_name),
    "price": select(Price.id, Price.resource),
    "user": select(User.id, User.name),
    "workspace": select(Workspace.id, Workspace.display_name),
}
_FOUND_BY: Final[dict[str, tuple[Any, ...]]] = {
    "flavor": (Flavor, Flavor.name),
    "gpu": (Gpu, Gpu.uuid),
    "host": (Host, Host.name),
    "image": (Image, Image.reference, Image.display_name),
    "user": (User, User.name),
    "workspace": (Workspace, Workspace.name, Workspace.display_name),
}


def find(session: Session, *, entity: str, name: str) -> int | None:
    """The newest thing of this kind and exactly this name, or number."""
    if name.isascii() and name.isdigit() and len(name) <= 18:
        return int(name)
    if entity not in _FOUND_BY:
        return None
    table, *columns = _FOUND_BY[entity]
    fits = columns[0] == name
    for column in columns[1:]:
        fits = fits | (column == name)
    found: int | None = session.scalar(select(table.id).where(fits).order_by(table.id.desc()).limit(1))
    return found


def _names(session: Session, entries: Sequence[AuditEntry]) -> dict[tuple[str, int], str]:
    wanted: dict[str, set[int]] = defaultdict(set)
    for one in entries:
        if one.entity in _NAMES and one.entity_id is not None:
            wanted[one.entity].add(one.entity_id)
    found = {}
    for entity, ids in wanted.items():
        query = _NAMES[entity]
        column = query.selected_columns[0]
        for number, name in session.execute(query.where(column.in_(ids))):
            found[entity, number] = name
    return found


def _lines(view: View, entry: AuditEntry, thing: str) -> list[Line]:
    detail = entry.detail
    before, after = detail.get("before") or {}, detail.get("after") or {}
    lines = [
        Line(_label(view, name), _value(view, name, before.get(name)), _value(view, name, after.get(name)), True)
        for name in dict.fromkeys((*after, *before))
        if before.get(name) is not None or after.get(name) is not None
    ]
    told = {"before", "after"} | ({"environment"} if entry.entity == "allocation" else set())
    facts = {name: value for name, value in detail.items() if name not in told and value != thing}
    lines += [
        Line(_label(view, name), None, _value(view, name, value), False)
        for name, value in facts.items()
        if value not in (None, "", [], {})
    ]
    return lines


def _label(view: View, name: str) -> str:
    return view.say(FIELDS[name][0]) if name in FIELDS else name


def _value(view: View, name: str, value: Any) -> Any:
    """A stored value for people; what is no number of ours, or unknown, stays as it was written."""
    kind = FIELDS.get(name, ("", ""))[1]
    if value is None:
        return view.say("nothing")
    if isinstance(value, bool):
        return view.say("yes") if value else view.say("no")
    if isinstance(value, int) and kind == "money":
        return view.money(value)
    if isinstance(value, int) and kind in ("cpu", "gpus", "memory"):
        return view.quantity(kind, value)
    if isinstance(value, int) and kind == "seconds":
        return view.duration(value)
    if isinstance(value, int) and kind == "percent":
        return f"{value} %"
    if isinstance(value, str) and kind == "reason":
        return why(view, value)
    if isinstance(value, str) and kind == "sentence":
        return view.stored(value)
    if isinstance(value, str) and kind == "moment":
        return _moment(view, value)
    if value == "unlimited" or (isinstance(value, str) and kind == "term"):
        return words.term(view.language, value)
    if isinstance(value, list):
        return " ".join(str(one) for one in value)
    if isinstance(value, dict):
        return view.say(", ").join(f"{_label(view, key)} {_value(view, key, part)}" for key, part in value.items())
    return str(value)


def _moment(view: View, text: str) -> str | Markup:
    try:
        return view.moment(datetime.fromisoformat(text))
    except ValueError:
        return text
