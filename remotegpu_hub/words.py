"""Words for people: sentences in the reader's language, and amounts, moments and refusals as people write them.

The English sentence with its `{facts}` is the key; `locale/zh_CN.json` holds the Simplified Chinese. Nothing here
knows who reads or where the words are shown; only `explain_html` and `Voice` know that HTML exists, and all is escaped.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_datetime
from babel.numbers import format_currency, get_currency_precision, get_currency_symbol
from markupsafe import Markup

from . import units
from .errors import Breach, BudgetExceeded, HostReason, NoCapacity, QuotaExceeded, RemoteGPUError, Unavailable

Language = Literal["en", "zh"]
LOCALES: Final = {"en": "en", "zh": "zh_CN"}
HTML_LANGUAGES: Final = {"en": "en", "zh": "zh-CN"}
MOST_MONEY_DIGITS: Final = 4
"""Unit prices are small: 0.0125 an hour is told in full, a millionth is not."""

TERMS: Final = frozenset({"what", "entity", "before", "after"})
"""Facts whose value is one of our own English terms, and is translated with the sentence."""


def language(accept_language: str | None, chosen: str | None = None) -> Language:
    """Pick the reader's language: what was chosen, else the best of an Accept-Language header, else English."""
    picked = _known(chosen or "")
    if picked:
        return picked
    best: tuple[float, Language] = (0.0, "en")
    for part in (accept_language or "")[:500].split(","):
        tag, _, weight = part.partition(";")
        known = _known(tag)
        if known:
            best = max(best, (_weight(weight), known), key=lambda entry: entry[0])
    return best[1]


def _known(tag: str) -> Language | None:
    primary = tag.strip().lower().replace("_", "-").split("-")[0]
    return "zh" if primary == "zh" else "en" if primary == "en" else None


def _weight(text: str) -> float:
    name, _, value = text.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


class _Facts(dict[str, Any]):
    """Facts of a sentence: None reads as nothing, and a missing one shows its name instead of raising."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def sentence(language: str, text: str) -> str:
    """The sentence of this language with its placeholders still in; English where no translation is known."""
    return _catalogue().get(text, text) if language == "zh" else text


def translate(language: str, text: str, **facts: Any) -> str:
    """Say a sentence in a language, with its facts. English where no translation is known."""
    known = _Facts({name: "" if fact is None else fact for name, fact in facts.items()})
    return sentence(language, text).format_map(known)


@cache
def _catalogue() -> dict[str, str]:
    path = Path(__file__).parent / "locale" / "zh_CN.json"
    words: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return words


def term(language: str, text: str) -> str:
    """Translate one of our own terms, also with a name behind it: `running`, `The workspace vision-lab`."""
    if language != "zh" or text in _catalogue():
        return sentence(language, text)
    words = text.split(" ")
    for end in range(len(words) - 1, 0, -1):
        named = " ".join(words[:end]) + " {name}"
        if named in _catalogue():
            return translate(language, named, name=" ".join(words[end:]))
    return text


def explain(error: RemoteGPUError, language: str) -> list[str]:
    """What happened, why (a line for each limit or host), and what to do next: one line of plain text each."""
    first, details, advice = explanation(error, language)
    return [first, *details, *([advice] if advice else [])]


def explain_text(error: RemoteGPUError, language: str) -> str:
    """The same in one paragraph, for programs and logs."""
    stop = "。" if language == "zh" else ". "
    return "".join(line.rstrip(".。:：") + stop for line in explain(error, language)).strip()


def explain_html(error: RemoteGPUError, language: str) -> str:
    """The same as HTML, with every fact escaped."""
    first, details, advice = explanation(error, language)
    lines = " ".join(f"<li>{escape(line)}</li>" for line in details)
    return (
        f'<span class="rg-what">{escape(first)}</span>'
        + (f' <ul class="rg-why">{lines}</ul>' if lines else "")
        + (f' <span class="rg-next">{escape(advice)}</span>' if advice else "")
    )


@dataclass(frozen=True)
class Voice:
    """What every template says, in one language and currency."""

    language: str
    currency: str

    def say(self, text: str, **facts: Any) -> str:
        """A sentence as plain text, escaped where the template prints it."""
        return translate(self.language, text, **facts)

    def money(self, micros: int, *, short: bool = False) -> str:
        return money(micros, self.currency, self.language, short=short)

    def explain(self, error: RemoteGPUError) -> Markup:
        return Markup(explain_html(error, self.language))

    @property
    def html_language(self) -> str:
        return HTML_LANGUAGES[language(None, self.language)]


def explanation(error: RemoteGPUError, language: str) -> tuple[str, list[str], str]:
    """The three parts of an explanation: the sentence, the lines of why, and what to do next ('' when nothing)."""
    facts = {name: term(language, fact) if name in TERMS else fact for name, fact in error.facts.items()}
    first = translate(language, error.text, **facts)
    if isinstance(error, QuotaExceeded):
        return first, [_breach(breach, language) for breach in error.breaches], _quota_advice(error, language)
    if isinstance(error, NoCapacity):
        lines = [_host(reason, language) for reason in error.hosts]
        more = error.facts.get("more")
        if more:
            lines.append(translate(language, "and {count} more hosts without room", count=more))
        advice = translate(language, "Choose less or another GPU, or wait until somebody stops.")
        return first, lines, advice
    if isinstance(error, BudgetExceeded):
        return first, [], translate(language, "Until then choose another workspace, or wait for the next month.")
    if isinstance(error, Unavailable) and "again" not in error.text:
        return first, [], translate(language, "Nothing was changed. Try again in a moment.")
    return first, [], ""


def _breach(breach: Breach, language: str) -> str:
    who = {
        "user": translate(language, "You"),
        "member": translate(language, "In {workspace} you", workspace=breach.name),
    }.get(breach.scope) or translate(language, "{workspace}", workspace=breach.name)
    limit = quantity(breach.resource, breach.limit, language)
    held, wanted = bare(breach.resource, breach.held), bare(breach.resource, breach.wanted)
    if breach.resource == "gpu_hours":
        used = translate(language, "{amount} is used" if held == "1" else "{amount} are used", amount=held)
        return translate(language, "{who} may use {limit} a month: {used}", who=who, limit=limit, used=used)
    are_held = translate(language, "{amount} is held" if held == "1" else "{amount} are held", amount=held)
    asked = translate(language, "{amount} was asked for" if wanted == "1" else "{amount} were asked for", amount=wanted)
    text = "{who} may hold {limit}: {held}, {wanted}"
    return translate(language, text, who=who, limit=limit, held=are_held, wanted=asked)


def _quota_advice(error: QuotaExceeded, language: str) -> str:
    workspaces = [breach.name for breach in error.breaches if breach.scope != "user"]
    if workspaces:
        text = "Stop an environment, choose less, or ask the owner of {workspace} for more."
        return translate(language, text, workspace=workspaces[0])
    return translate(language, "Stop an environment, choose less, or ask an admin of the hub for more.")


def _host(reason: HostReason, language: str) -> str:
    if reason.resource == "status":
        return f"{reason.host}: {term(language, reason.status)}"
    model = reason.resource.removeprefix("gpu:")
    if model != reason.resource:
        text = "{host}: {free} of {total} {model} free"
        return translate(language, text, host=reason.host, free=reason.free, total=reason.total, model=model)
    free, total = bare(reason.resource, reason.free), quantity(reason.resource, reason.total, language)
    return translate(language, "{host}: {free} of {total} free", host=reason.host, free=free, total=total)


def quantity(resource: str, value: int, language: str) -> str:
    """An amount of a resource in its own unit, for people: `8 GPUs`, `0.5 cores`, `64 GiB`, `2 × A100-80GB`."""
    if resource in ("memory", "storage"):
        return units.show_bytes(value)
    count = bare(resource, value)
    if resource.startswith("gpu:"):
        return f"{count} × {resource.removeprefix('gpu:')}"
    one, many = {
        "gpus": ("{count} GPU", "{count} GPUs"),
        "cpu": ("{count} core", "{count} cores"),
        "environments": ("{count} environment", "{count} environments"),
        "gpu_hours": ("{count} GPU hour", "{count} GPU hours"),
    }.get(resource, ("{count}", "{count}"))
    return translate(language, one if count == "1" else many, count=count)


def bare(resource: str, value: int) -> str:
    """The same without the word for it, where that stands beside: `8`, `0.5`; a size keeps its unit."""
    if resource in ("memory", "storage"):
        return units.show_bytes(value)
    if resource == "gpu_hours":
        tenths = value * 10 // units.GPU_HOUR
        return f"{tenths // 10}.{tenths % 10}".removesuffix(".0")
    return units.show_thousandths(value) if resource in ("gpus", "cpu") else str(value)


def gpus(millis: int) -> str:
    """Milli-GPUs as a bare number: `2`, `0.25`."""
    return units.show_thousandths(millis)


def money(amount_micros: int, currency: str, language: str, *, short: bool = False) -> str:
    """Millionths of a currency as people write them: `¥22.36`, `¥0.0125`; `short`, for totals: `¥2,060`, `¥0.01`.

    At least the digits of the currency, at most four: an amount that four cannot show reads `<¥0.0001`, never 0.
    The hub has one currency, so the yuan is `¥` in English too.
    """
    locale = _locale(language)
    digits = min(get_currency_precision(currency), MOST_MONEY_DIGITS)
    most = digits if short else MOST_MONEY_DIGITS
    if short and amount_micros >= 100 * units.MICROS:
        amount_micros -= amount_micros % units.MICROS
        digits = most = 0
    least = units.MICROS // 10**most
    if 0 < amount_micros < least:
        return "<" + money(least, currency, language, short=short)
    gap = "\N{NO-BREAK SPACE}" if get_currency_symbol(currency, locale)[-1:].isalpha() else ""
    pattern = "¤" + gap + "#,##0." + "0" * digits + "#" * (most - digits)
    amount = Decimal(amount_micros).scaleb(-6)
    shown: str = format_currency(amount, currency, pattern.removesuffix("."), locale=locale, currency_digits=False)
    return shown.replace("CN¥", "¥")


@cache
def _locale(language: str) -> Any:
    """Parsed once: babel lists its files for every name of a locale that it is given."""
    return Locale.parse(LOCALES.get(language, "en"))


def duration(seconds: int, language: str) -> str:
    """A length of time in its two largest units: `45 s`, `5 min`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 60:
        return translate(language, "{count} s", count=max(seconds, 0))
    minutes = seconds // 60
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [("{count} d", days), ("{count} h", hours), ("{count} min", 0 if days else minutes)]
    return " ".join(translate(language, text, count=count) for text, count in parts if count)


def moment(value: datetime, time_zone: str, language: str) -> str:
    """An instant in a zone, with the zone's name: `Sat 28 Nov 2026, 01:30 Asia/Shanghai`."""
    pattern = "y年M月d日 EEE HH:mm" if language == "zh" else "EEE d MMM y, HH:mm"
    zone = ZoneInfo(time_zone)
    shown: str = format_datetime(value.astimezone(zone), pattern, locale=_locale(language))
    return f"{shown} {time_zone}"


def clock(value: datetime, time_zone: str) -> str:
    """The time of day of an instant in a zone, with the zone's name: `14:02:11 Asia/Shanghai`."""
    return f"{value.astimezone(ZoneInfo(time_zone)):%H:%M:%S} {time_zone}"
