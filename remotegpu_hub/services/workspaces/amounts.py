"""Limits as people type and read them: whole GPUs and cores, GiB; converted here and nowhere else, exactly."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...domain import requests
from ...domain.quotas import Level
from ...units import GIB, GPU_HOUR, UNLIMITED, WHOLE_GPU, exact, read_exact, spell_limit
from ..pages import View

NAMES = {
    "gpu_millis": ("gpus", WHOLE_GPU),
    "cpu_millis": ("cpu", 1000),
    "memory_bytes": ("memory", GIB),
    "storage_bytes": ("storage", GIB),
    "environments": ("environments", 1),
    "gpu_hours": ("gpu_hours", 1),
}
"""What words call a limit, and how many of what is counted make one of what is typed."""


@dataclass(frozen=True)
class Amount:
    """One limit in a form or a table. Its own value is None where it inherits."""

    name: str
    """As in `requests.Limits`."""
    label: str
    unit: str
    typed: str
    """What stands in the field."""
    unlimited: bool
    inherited: str
    """What counts where the field is empty, in words."""
    held: str
    held_words: str
    """As a part of a sentence: held, or used this month."""
    allowed: str
    """What counts now, in words."""
    below: bool
    """Less is allowed than is held."""
    percent: float
    other: str = ""
    """What somebody else set meanwhile, in words."""


def label(view: View, name: str) -> str:
    """What a limit is called."""
    return {
        "gpu_millis": view.say("GPUs"), "cpu_millis": view.say("Cores"), "memory_bytes": view.say("Main memory"),
        "storage_bytes": view.say("Storage"), "environments": view.say("Running environments"),
        "gpu_hours": view.say("GPU hours a month"),
    }.get(name) or name.removeprefix("gpu:")  # fmt: skip


def unit(view: View, name: str) -> str:
    """What stands behind the field, where the label does not say it."""
    return {"cpu_millis": view.say("cores"), "memory_bytes": "GiB", "storage_bytes": "GiB"}.get(name, "")


def words(view: View, name: str, value: int) -> str:
    """One limit in words."""
    if value >= UNLIMITED:
        return view.say("unlimited")
    resource = NAMES.get(name, (name, 1))[0]
    return view.quantity(resource, value * GPU_HOUR if name == "gpu_hours" else value)


def held(level: Level, name: str) -> int:
    """What of a limit is held, or used this month, in the limit's own unit; a part of an hour counts as none."""
    if name == "gpu_hours":
        return level.gpu_time // GPU_HOUR
    model = name.removeprefix("gpu:")
    return level.held_slots[model] if model != name else level.held[name]


def show(name: str, value: int | None) -> str:
    """A limit as it is typed; nothing for one that inherits or is unlimited."""
    return "" if value is None or value >= UNLIMITED else exact(value, NAMES.get(name, (name, 1))[1])


def is_limit(name: str) -> bool:
    """Whether a field of a form is one of a limit."""
    return name in NAMES or (name.startswith("gpu:") and len(name) > len("gpu:"))


def read(name: str, text: str, *, unlimited: bool = False) -> int | None:
    """What was typed for a limit; None for nothing. Raises: Invalid."""
    if unlimited:
        return UNLIMITED
    return read_exact(text, NAMES.get(name, (name, 1))[1]) if text.strip() else None


def amount(
    view: View,
    level: Level,
    name: str,
    own: int | None = None,
    *,
    inherited: int | None = None,
    typed: str | None = None,
) -> Amount:
    """Lay a limit beside what is held of it."""
    allowed, now_held = requests.limit(level, name), held(level, name)
    hours = name == "gpu_hours"
    shown = view.quantity(name, level.gpu_time) if hours else words(view, name, now_held)
    return Amount(
        name=name,
        label=label(view, name),
        unit=unit(view, name),
        typed=show(name, own) if typed is None else typed,
        unlimited=own is not None and own >= UNLIMITED,
        inherited="" if inherited is None else words(view, name, inherited),
        held=shown,
        held_words=view.say("{amount} used" if hours else "{amount} held", amount=shown),
        allowed=words(view, name, allowed),
        below=allowed < now_held,
        percent=0.0
        if allowed >= UNLIMITED
        else min(100.0, 100 * now_held / allowed if allowed else 100.0 * bool(now_held)),
    )


def names(level: Level, more: Iterable[str] = ()) -> list[str]:
    """All limits of a level in their order, and those of `more` models."""
    return [*NAMES, *(f"gpu:{model}" for model in sorted({*level.slot_limits, *more}))]


def in_words(view: View, kept: Mapping[str, Any]) -> list[str]:
    """Limits of a request, each so that it is understood alone."""
    return [_alone(view, name, value) for name, value in requests.read(kept).items()]


def _alone(view: View, name: str, value: int) -> str:
    said = words(view, name, value)
    if name == "gpu_hours" and value < UNLIMITED:
        return view.say("{amount} a month", amount=said)
    return (
        said if name not in ("memory_bytes", "storage_bytes") and value < UNLIMITED else f"{label(view, name)} {said}"
    )


def shape(limits: Mapping[str, int | None]) -> dict[str, Any]:
    """Limits as the API takes them."""
    plain = {name: spell_limit(value) for name, value in limits.items()}
    models = {name.removeprefix("gpu:"): value for name, value in plain.items() if name.startswith("gpu:")}
    return {**{name: value for name, value in plain.items() if name in NAMES}, "models": models}
