"""What the spawn page shows, worked out from offers in the reader's words; `templates/form.html` lays it out.

Pure: the same offers give the same HTML. It knows nothing of what comes back.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from .. import units, words
from ..domain.environments import GpuOffer, ImageOffer, LimitBar, Offers, PriceLine, WorkspaceOffer
from ..errors import RemoteGPUError

TEMPLATES: Final = Path(__file__).parent / "templates"
"""Folder of our templates; the hub finds its overridden pages there too (`c.JupyterHub.template_paths`)."""

SHOWN_LIMITS: Final = 5
"""The tightest limits are in view; the others are folded away."""

MANY_IMAGES: Final = 4
"""With more images than this the page offers a search."""

SERVICES: Final = {
    "ssh": "SSH",
    "jupyter": "Jupyter",
    "vscode": "VS Code",
    "tensorboard": "TensorBoard",
    "custom": "A port of your own",
}
CATEGORIES: Final = {"official": "official", "workspace": "workspace", "private": "private"}


def render(offers: Offers, language: str, *, error: RemoteGPUError | None = None) -> str:
    """The inside of the spawn form, all of it escaped."""
    view = View("zh" if language == "zh" else "en", offers.currency, offers)
    template = _environment().get_template("form.html")
    return template.render(offers=offers, view=view, t=view.say, h=view.mark, bold=_bold, error=error)


def _bold(text: str) -> Markup:
    return Markup("<b>{}</b>").format(text)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@dataclass(frozen=True)
class Bar:
    """A limit as a bar: percentages of its width, and the same in words."""

    label: str
    numbers: str
    held: int
    wanted: int
    over: bool


@dataclass(frozen=True)
class View(words.Voice):
    """Offers in the words of one language."""

    offers: Offers

    def mark(self, text: str, **facts: Any) -> Markup:
        """A sentence whose facts may be markup; whatever is not is escaped."""
        return Markup(escape(words.sentence(self.language, text))).format(**facts)

    @property
    def many_images(self) -> int:
        return MANY_IMAGES

    @property
    def chosen_workspace(self) -> WorkspaceOffer | None:
        named = (one for one in self.offers.workspaces if one.name == self.offers.choice.workspace)
        return next(named, None)

    def because(self, error: RemoteGPUError) -> str:
        """A reason in one line: beside a choice there is no room for the whole explanation."""
        first, details, _ = words.explanation(error, self.language)
        return details[0] if details else first

    def clock(self, moment: datetime) -> Markup:
        """The time of day; a script may turn it into the reader's own zone."""
        return self._time(moment, "clock", words.clock(moment, self.offers.time_zone))

    def moment(self, moment: datetime) -> Markup:
        return self._time(moment, "moment", words.moment(moment, self.offers.time_zone, self.language))

    def _time(self, moment: datetime, kind: str, shown: str) -> Markup:
        return Markup('<time datetime="{}" data-rg-time="{}">{}</time>').format(moment.isoformat(), kind, shown)

    def left(self, workspace: WorkspaceOffer) -> str:
        """What the user may still start there, in a few words."""
        if workspace.reason is not None:
            return self.because(workspace.reason)
        millis = workspace.gpu_millis_left
        if millis >= units.UNLIMITED:
            parts = [self.say("no GPU limit")]
        else:
            gpus = words.quantity("gpus", millis, self.language)
            parts = [self.say("{gpus} left to you", gpus=gpus)]
        if workspace.budget_left is not None:
            parts.append(
                self.say("{money} left this month", money=self.money(max(workspace.budget_left, 0), short=True))
            )
        return self.say(", ").join(parts)

    def resources(self, model: str | None, gpus: int, cpu_millis: int, memory_bytes: int) -> str:
        parts = [words.quantity(f"gpu:{model}", gpus, self.language)] if model and gpus else []
        parts.append(words.quantity("cpu", cpu_millis, self.language))
        parts.append(units.show_bytes(memory_bytes))
        return " · ".join(parts)

    def image_facts(self, image: ImageOffer) -> str:
        parts = [
            image.framework,
            image.python_version and f"Python {image.python_version}",
            image.cuda_version and f"CUDA {image.cuda_version}",
            image.size_bytes and units.show_bytes(image.size_bytes),
        ]
        return " · ".join(part for part in parts if part)

    def category(self, image: ImageOffer) -> str:
        return self.say(CATEGORIES[image.category]) if image.category in CATEGORIES else image.category

    def service(self, service: str) -> str:
        return self.say(SERVICES[service]) if service in SERVICES else service

    def gpu_memory(self, gpu: GpuOffer) -> str:
        return units.show_bytes(gpu.memory_mib * 2**20)

    def free(self, gpu: GpuOffer) -> str:
        if gpu.hosts_free == 1:
            return self.say("{free} of {usable} free, on one host", free=gpu.free, usable=gpu.usable)
        if gpu.hosts_free:
            text = "{free} of {usable} free, on {hosts} hosts"
            return self.say(text, free=gpu.free, usable=gpu.usable, hosts=gpu.hosts_free)
        return self.say("{free} of {usable} free", free=gpu.free, usable=gpu.usable)

    def line(self, line: PriceLine) -> str:
        shown = words.quantity(line.resource, line.quantity, self.language)
        if line.resource in ("memory", "storage"):
            return self.say("{size} memory" if line.resource == "memory" else "{size} storage", size=shown)
        return shown

    def bars(self) -> tuple[list[Bar], list[Bar]]:
        """Limits in view (those that would be broken, the budget, then the tightest) and the others, each in order."""
        limits = self.offers.quote.limits if self.offers.quote else ()
        bars = [self.bar(limit) for limit in limits]

        def rank(place: int) -> tuple[bool, bool, bool, int]:
            limit, bar = limits[place], bars[place]
            return not bar.over, limit.scope != "budget", not limit.wanted, -(bar.held + bar.wanted)

        ranked = sorted(range(len(bars)), key=rank)
        most = max(SHOWN_LIMITS, sum(bar.over for bar in bars))
        return [bars[place] for place in sorted(ranked[:most])], [bars[place] for place in sorted(ranked[most:])]

    def bar(self, limit: LimitBar) -> Bar:
        """A limit before and after this start. GPU hours have no after: they grow while it runs."""
        if limit.scope == "budget":
            held, full_amount = (self.money(amount, short=True) for amount in (limit.held, limit.limit))
            numbers = self.say("{held} of {limit}", held=held, limit=full_amount)
        else:
            in_gib = limit.resource in ("memory", "storage")
            held, after = (
                units.show_thousandths(value * 10 // units.GIB * 100) if in_gib else words.bare(limit.resource, value)
                for value in (limit.held, limit.held + limit.wanted)
            )
            all_of_it = words.bare(limit.resource, limit.limit)
            grows = limit.resource == "gpu_hours" or not limit.wanted
            text = "{held} of {limit}" if grows else "{held} → {after} of {limit}"
            numbers = self.say(text, held=held, after=after, limit=all_of_it)
        full = max(limit.limit, 1)
        held_percent = min(limit.held * 100 // full, 100)
        wanted_percent = min(-(-limit.wanted * 100 // full), 100 - held_percent)
        over = limit.held + limit.wanted > limit.limit and limit.resource != "gpu_hours" and limit.scope != "budget"
        over = over or (limit.held >= limit.limit and (limit.wanted > 0 or limit.scope == "budget"))
        return Bar(self._label(limit), numbers, max(held_percent, 0), max(wanted_percent, 0), over)

    def _label(self, limit: LimitBar) -> str:
        if limit.scope == "budget":
            return self.say("{workspace}: budget of this month", workspace=limit.name)
        name = {
            "gpus": "GPUs",
            "cpu": "CPU cores",
            "memory": "memory",
            "storage": "storage",
            "environments": "environments",
            "gpu_hours": "GPU hours this month",
        }.get(limit.resource, limit.resource.removeprefix("gpu:"))
        resource = words.sentence(self.language, name)
        if limit.scope == "user":
            return self.say("Your {resource}", resource=resource)
        if limit.scope == "member":
            return self.say("Your {resource} in {workspace}", resource=resource, workspace=limit.name)
        return self.say("{workspace}: {resource}", resource=resource, workspace=limit.name)

    def summary(self) -> str:
        """What a screen reader announces when the quote has changed."""
        quote = self.offers.quote
        if quote is None:
            return self.say("Nothing can be started yet.")
        price = self.say("no price is set")
        if quote.price_per_hour is not None:
            price = self.say("{money} an hour", money=self.money(quote.price_per_hour))
        if quote.refusal is not None:
            return f"{price}. {self.say('Cannot start now:')} {self.because(quote.refusal)}"
        return f"{price}. {self.say('Can start now.')}"

    def thousandths(self, millis: int | None) -> str:
        """Milli-cores or milli-GPUs as a plain number; '' when nothing is said."""
        return "" if millis is None else units.show_thousandths(millis)

    def gib(self, size_bytes: int | None) -> str:
        """GiB as a plain number with up to three decimals, rounded down; '' when nothing is said."""
        return "" if size_bytes is None else units.show_thousandths(size_bytes * 1000 // units.GIB)
