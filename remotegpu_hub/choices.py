"""What people and programs send becomes a choice: the posted form, `user_options`, query arguments.

Pure: no database, no hub, no clock. `parse` is strict, for starts by form and by REST alike;
`prefill` is lenient, for query arguments and the page's own renewals, which only fill in fields.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote

from . import units
from .domain.environments import Choice
from .errors import Invalid
from .orm import PortService

LONGEST: Final = {"workspace": 64, "image": 512, "flavor": 64, "gpu_model": 80, "name": 100}
"""Characters that the texts of a choice may have, as the tables hold them."""
MOST_GPUS: Final = 1024
MOST_CPU_MILLIS: Final = 4096 * 1000
MOST_MEMORY_BYTES: Final = 2**50
LONGEST_NUMBER: Final = 32
LONGEST_HEADER: Final = 8192
OPTIONS: Final = ("workspace", "image", "flavor", "gpu_model", "gpus", "cpu", "memory", "ports", "name")
OF_A_FLAVOR: Final = ("gpu_model", "gpus", "cpu", "memory")
FIELDS: Final = (*(name for name in OPTIONS if name != "memory"), "memory_gib")
"""Names of the form's fields; memory is sent in GiB, as a plain number."""


def parse_form(form_data: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Turn the posted fields into clean `user_options`, the same that REST takes.

    Raises: Invalid, also for what `parse` would refuse, so that the page says it at once.
    """
    options: dict[str, Any] = {}
    for field, values in form_data.items():
        if field == "_xsrf":
            continue
        if field not in FIELDS:
            raise Invalid("{key} is not a field of this form.", key=_shown(field))
        if field == "ports":
            options["ports"] = [value for value in values if value]
        elif len(values) != 1 or not isinstance(values[0], str):
            raise Invalid("{key} was sent more than once.", key=field)
        else:
            options[field] = values[0]
    options = _settled(options)
    parse(options)
    return options


def _settled(fields: dict[str, Any]) -> dict[str, Any]:
    """A browser posts every field: keep the numbers only where no flavor decides them, and empty ones nowhere."""
    own = {name: value for name, value in fields.items() if name != "memory_gib"}
    memory = str(fields.get("memory_gib", "")).strip()
    if memory:
        own["memory"] = f"{memory}G"
    if fields.get("flavor"):
        own = {name: value for name, value in own.items() if name not in OF_A_FLAVOR}
    elif own.get("gpu_model") == "":
        own["gpus"] = "0"
    kept = {name: value for name, value in own.items() if value != "" or name in ("flavor", "gpu_model")}
    count = kept.get("gpus")
    if isinstance(count, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", count):
        kept["gpus"] = int(count)
    return kept


def parse(options: Mapping[str, object]) -> Choice:
    """Read `user_options`, from the form or from REST, into a choice. Raises: Invalid, naming the option."""
    if not isinstance(options, Mapping):
        raise Invalid("The options must be an object of names and values.")
    for key in options:
        if key not in OPTIONS:
            raise Invalid("{key} is not an option: the options are {known}.", key=_shown(key), known=", ".join(OPTIONS))
    fields = {READERS[name][0]: READERS[name][1](name, value) for name, value in options.items() if value is not None}
    choice = Choice(**fields)
    if choice.flavor and any(options.get(name) is not None for name in OF_A_FLAVOR):
        raise Invalid("Choose a flavor or your own numbers: a flavor sets gpu_model, gpus, cpu and memory itself.")
    if choice.gpu_model == "" and choice.gpus:
        raise Invalid("Say which GPU model: {gpus} GPUs were asked for without one.", gpus=choice.gpus)
    if choice.gpu_model and choice.gpus == 0:
        raise Invalid("Ask for at least one GPU, or leave out the GPU model.")
    return choice


def prefill(query: Mapping[str, Sequence[str]]) -> Choice:
    """Read what can be read of query arguments (with or without `opt-`) or posted fields, and drop the rest."""
    fields: dict[str, Any] = {}
    for key, values in query.items():
        name = key.removeprefix("opt-") if isinstance(key, str) else ""
        if name in (*FIELDS, "memory") and values and all(isinstance(value, str) for value in values):
            fields[name] = [value for value in values if value] if name == "ports" else values[-1]
    choice = Choice()
    for name, value in _settled(fields).items():
        try:
            choice = replace(choice, **{READERS[name][0]: READERS[name][1](name, value)})
        except Invalid:
            continue
    if choice.gpu_model == "" or choice.gpus == 0:
        return replace(choice, gpu_model="", gpus=0)
    return choice


def prefill_header(value: str | None) -> Choice | None:
    """Read the choice that the page sends along when it renews its numbers; None when there is none to read."""
    if not value or len(value) > LONGEST_HEADER:
        return None
    try:
        query = json.loads(unquote(value))
    except (ValueError, RecursionError):
        return None
    if not isinstance(query, dict) or not all(isinstance(values, list) for values in query.values()):
        return None
    return prefill(query)


def _text(key: str, value: object) -> str:
    limit = LONGEST[key]
    if not isinstance(value, str) or len(value) > limit:
        raise Invalid("{key} must be text of at most {limit} characters.", key=key, limit=limit)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise Invalid("{key} has characters that cannot be shown.", key=key)
    value = " ".join(value.split())
    if not value.isprintable():
        raise Invalid("{key} has characters that cannot be shown.", key=key)
    return value


def _name(key: str, value: object) -> str | None:
    return _text(key, value) or None


def _gpus(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_GPUS:
        raise Invalid("{key} must be a whole number from 0 to {limit}.", key=key, limit=MOST_GPUS)
    return value


def _cores(key: str, value: object) -> int:
    millis = -1
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        try:
            millis = units.parse_cores(value)
        except Invalid:
            millis = -1
    elif isinstance(value, float) and math.isfinite(value) and 0 < value <= MOST_CPU_MILLIS:
        exact = Decimal(str(value)) * 1000
        millis = int(exact) if exact == int(exact) else -1
    elif isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_CPU_MILLIS:
        millis = value * 1000
    if not 0 < millis <= MOST_CPU_MILLIS:
        limit = units.show_thousandths(MOST_CPU_MILLIS)
        raise Invalid("{key} must be a number of cores up to {limit}, such as 4 or 0.5.", key=key, limit=limit)
    return millis


def _bytes(key: str, value: object) -> int:
    size = -1
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        try:
            size = units.parse_bytes(value)
        except Invalid:
            size = -1
    if not 0 < size <= MOST_MEMORY_BYTES:
        limit = units.show_bytes(MOST_MEMORY_BYTES)
        raise Invalid("{key} must be a size up to {limit}, such as 16G.", key=key, limit=limit)
    return size


def _ports(key: str, value: object) -> tuple[str, ...]:
    known = [service.value for service in PortService]
    if not isinstance(value, (list, tuple)) or len(value) > len(known) or any(one not in known for one in value):
        raise Invalid("{key} must be a list out of {known}.", key=key, known=", ".join(known))
    return tuple(dict.fromkeys(str(one) for one in value))


READERS: Final[dict[str, tuple[str, Callable[[str, object], Any]]]] = {
    "workspace": ("workspace", _name),
    "image": ("image", _name),
    "flavor": ("flavor", _text),
    "gpu_model": ("gpu_model", _text),
    "gpus": ("gpus", _gpus),
    "cpu": ("cpu_millis", _cores),
    "memory": ("memory_bytes", _bytes),
    "ports": ("ports", _ports),
    "name": ("name", _name),
}
"""For each option the field of a choice, and what reads it. An empty `flavor` is "own numbers", an empty
`gpu_model` is "no GPU"; both differ from not said."""


def _shown(key: object) -> str:
    """A foreign key as it may be repeated to its sender: short, and of plain characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "?", key[:40]) if isinstance(key, str) else "?"
