"""What other limits would have refused: the runs of a month, replayed in the order in which they were admitted.

The replay is pure. A start that it refuses holds nothing afterwards, so those that come later find more room; what ran
already when the month began is taken as it was, and so is what was stored. A start needs the volumes that it found or
made then: where the one that made a volume is refused, the next one that needs it has to make it.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heappop, heappush
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..errors import Breach
from ..orm import Allocation, AuditEntry, Volume
from ..units import GPU_HOUR

AT_ONCE: Final = {"gpu_millis": "gpus", "cpu_millis": "cpu", "memory_bytes": "memory", "environments": "environments"}
"""Limits on what is held at once, and what a breach calls them."""


@dataclass(frozen=True)
class Limits:
    """What everybody, or every workspace, would be allowed; None does not limit."""

    gpu_millis: int | None = None
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    environments: int | None = None
    gpu_hours: int | None = None
    """In the month."""
    storage_bytes: int | None = None
    models: Mapping[str, int] = field(default_factory=dict)
    """Slots of a GPU model."""


@dataclass(frozen=True)
class Start:
    """A run as it was admitted, and when it ran."""

    id: int
    environment_id: int
    user_id: int
    workspace_id: int
    gpu_model: str | None
    gpu_slots: int
    gpu_millis: int
    cpu_millis: int
    memory_bytes: int
    admitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True)
class Sized:
    """How large a volume is from an instant on; 0 where it was given up."""

    at: datetime
    workspace_id: int
    user_id: int | None
    """None: shared by the workspace."""
    size_bytes: int


@dataclass(frozen=True)
class Refusal:
    """A start that would have been refused, with every limit that it would have broken. The `name` of a breach is the
    id of the user or workspace."""

    start: Start
    breaches: tuple[Breach, ...]


@dataclass
class _Held:
    """What one user or workspace holds at this moment of the replay, and has used of the month."""

    sums: list[int] = field(default_factory=lambda: [0] * len(AT_ONCE))
    """In the order of `AT_ONCE`."""
    slots: Counter[str] = field(default_factory=Counter)
    used: int = 0
    """Milli-GPU-seconds of what has ended."""
    running: int = 0
    """Milli-GPUs that run …"""
    since: int = 0
    """… and the sum of each of them × the second in which it began."""
    storage: int = 0

    def take(self, start: Start, sign: int) -> None:
        for place, amount in enumerate(_amounts(start)):
            self.sums[place] += sign * amount
        if start.gpu_model is not None:
            self.slots[start.gpu_model] += sign * start.gpu_slots

    def gpu_time(self, second: int) -> int:
        return self.used + self.running * second - self.since


def _amounts(start: Start) -> tuple[int, ...]:
    """In the order of `AT_ONCE`."""
    return start.gpu_millis, start.cpu_millis, start.memory_bytes, 1


class _Storage:
    """What is stored in the replay, beside what was stored then."""

    def __init__(self, sizes: Iterable[Sized], held: MutableMapping[tuple[str, int], _Held], begin: datetime) -> None:
        self._to_come, self._held, self._begin = deque(sorted(sizes, key=lambda one: one.at)), held, begin
        self._then: dict[tuple[int, int | None], int] = {}
        self._now: dict[tuple[int, int | None], int] = {}

    def pass_until(self, moment: datetime) -> None:
        while self._to_come and self._to_come[0].at <= moment:
            one = self._to_come.popleft()
            place = (one.workspace_id, one.user_id)
            self._then[place] = one.size_bytes
            if one.at < self._begin or not one.size_bytes:
                self._keep(place, one.size_bytes)

    def lacking(self, start: Start) -> tuple[int, int]:
        """Bytes that a start would make of its user's, and of all of the workspace."""
        shared, home = (max(self._then.get(one, 0) - self._now.get(one, 0), 0) for one in self._places(start))
        return home, home + shared

    def make(self, start: Start) -> None:
        """Keep what an admitted start needs."""
        for place in self._places(start):
            if self._then.get(place, 0) > self._now.get(place, 0):
                self._keep(place, self._then[place])

    @staticmethod
    def _places(start: Start) -> tuple[tuple[int, int | None], ...]:
        return (start.workspace_id, None), (start.workspace_id, start.user_id)

    def _keep(self, place: tuple[int, int | None], size_bytes: int) -> None:
        workspace_id, user_id = place
        more = size_bytes - self._now.get(place, 0)
        self._now[place] = size_bytes
        self._held["workspace", workspace_id].storage += more
        if user_id is not None:
            self._held["user", user_id].storage += more


def replay(
    starts: Iterable[Start], *, user: Limits, workspace: Limits, begin: datetime, end: datetime,
    sizes: Sequence[Sized] = (),
) -> list[Refusal]:  # fmt: skip
    """Say which of the starts in `[begin, end)` these limits would have refused. `starts` come in the order of their
    admission; those from before `begin` are what still ran then. `sizes` are those of volumes, in any order."""
    held: dict[tuple[str, int], _Held] = defaultdict(_Held)
    storage = _Storage(sizes, held, begin)
    to_come: list[tuple[int, int, int, Start]] = []
    refused = []
    first = int(begin.timestamp())
    of_user, of_workspace = _laid(user), _laid(workspace)
    for start in starts:
        second = int(start.admitted_at.timestamp())
        while to_come and to_come[0][0] <= second:
            at, kind, _, one = heappop(to_come)
            for key in _keys(one):
                _pass(held[key], one, at, ended=kind == _ENDS, first=first)
        if start.admitted_at >= end:
            break
        its_user, its_workspace = _keys(start)
        storage.pass_until(start.admitted_at)
        if start.admitted_at >= begin:
            of_home, of_all = storage.lacking(start)
            breaches = (
                *_breaches(start, *its_user, held[its_user], user, of_user, of_home),
                *_breaches(start, *its_workspace, held[its_workspace], workspace, of_workspace, of_all),
            )
            if breaches:
                refused.append(Refusal(start, breaches))
                continue
        storage.make(start)
        for key in _keys(start):
            held[key].take(start, 1)
        if start.started_at is not None and start.gpu_millis:
            heappush(to_come, (int(start.started_at.timestamp()), _BEGINS, start.id, start))
        if start.ended_at is not None:
            heappush(to_come, (int(start.ended_at.timestamp()), _ENDS, start.id, start))
    return refused


_BEGINS, _ENDS = 0, 1


def _keys(start: Start) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("user", start.user_id), ("workspace", start.workspace_id)


def _pass(held: _Held, start: Start, second: int, *, ended: bool, first: int) -> None:
    """Let a run begin to use GPU time, or end."""
    if not ended:
        held.running += start.gpu_millis
        held.since += start.gpu_millis * max(second, first)
        return
    held.take(start, -1)
    if start.started_at is not None and start.gpu_millis:
        began = max(int(start.started_at.timestamp()), first)
        held.running -= start.gpu_millis
        held.since -= start.gpu_millis * began
        held.used += start.gpu_millis * max(second - began, 0)


_Laid = list[tuple[int, str, int]]


def _laid(limits: Limits) -> _Laid:
    """What is limited at once: its place in `AT_ONCE`, its name, and how much."""
    found = [(place, shown, getattr(limits, name)) for place, (name, shown) in enumerate(AT_ONCE.items())]
    return [one for one in found if one[2] is not None]


def _breaches(
    start: Start, scope: str, number: int, now: _Held, limits: Limits, laid: _Laid, new_bytes: int
) -> Iterable[Breach]:
    """Every limit of this user or workspace that the start would break at this second."""
    amounts = _amounts(start)
    for place, shown, limit in laid:
        if amounts[place] > 0 and now.sums[place] + amounts[place] > limit:
            yield Breach(scope, str(number), shown, amounts[place], now.sums[place], limit)
    if limits.storage_bytes is not None and new_bytes and now.storage + new_bytes > limits.storage_bytes:
        yield Breach(scope, str(number), "storage", new_bytes, now.storage, limits.storage_bytes)
    if start.gpu_model is None:
        return
    slots = limits.models.get(start.gpu_model)
    if slots is not None and now.slots[start.gpu_model] + start.gpu_slots > slots:
        held = now.slots[start.gpu_model]
        yield Breach(scope, str(number), f"gpu:{start.gpu_model}", start.gpu_slots, held, slots)
    if limits.gpu_hours is not None and start.gpu_millis:
        used, most = now.gpu_time(int(start.admitted_at.timestamp())), limits.gpu_hours * GPU_HOUR
        if used >= most:
            yield Breach(scope, str(number), "gpu_hours", start.gpu_millis * 3600, used, most)


def starts(session: Session, *, begin: datetime, end: datetime, after: int, limit: int) -> list[Start]:
    """Some of the runs that a replay of this period needs, in the order of their ids from behind `after`."""
    columns = [getattr(Allocation, name) for name in Start.__dataclass_fields__]
    lives = Allocation.ended_at.is_(None) | (Allocation.ended_at > begin)
    query = (
        select(*columns)
        .where(Allocation.id > after, Allocation.admitted_at < end, lives)
        .order_by(Allocation.id)
        .limit(limit)
    )
    return [Start(*row) for row in session.execute(query)]


def sizes(session: Session, *, end: datetime) -> list[Sized]:
    """How large which volume was from when on, until `end`: the audit log has it of each, to the byte."""
    query = select(Volume.id, Volume.workspace_id, Volume.user_id, Volume.deleted_at)
    volumes = {row.id: row for row in session.execute(query.where(Volume.created_at < end))}
    changes = select(AuditEntry.at, AuditEntry.entity_id, AuditEntry.detail).where(
        AuditEntry.action == "volume.size", AuditEntry.at < end
    )
    found = [
        Sized(at, volumes[number].workspace_id, volumes[number].user_id, int(detail["after"]["size_bytes"]))
        for at, number, detail in session.execute(changes.order_by(AuditEntry.at, AuditEntry.id))
        if number in volumes
    ]
    gone = [one for one in volumes.values() if one.deleted_at is not None and one.deleted_at < end]
    return found + [Sized(one.deleted_at, one.workspace_id, one.user_id, 0) for one in gone]
