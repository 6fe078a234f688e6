"""The one error tree. An error carries facts; each door turns it into words of the reader's language in one place.

The text is an English sentence with `{facts}`, which is also the key under which `words` finds its translation.
"""

from dataclasses import dataclass
from typing import Any, ClassVar


class RemoteGPUError(Exception):
    """What all our errors are. `status` is the HTTP status a door answers with, `code` is for programs."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.text = text
        self.facts = facts

    def __str__(self) -> str:
        return self.text.format(**{k: v if v is not None else "" for k, v in self.facts.items()})


class Invalid(RemoteGPUError):
    """The input is wrong; the sentence says which value and what is expected."""

    status = 400
    code = "invalid"


class Denied(RemoteGPUError):
    """The caller may see it but not do this to it."""

    status = 403
    code = "denied"


class NotFound(RemoteGPUError):
    """Unknown or foreign: both look the same from outside."""

    status = 404
    code = "not_found"

    def __init__(self, what: str = "This") -> None:
        super().__init__("{what} was not found.", what=what)


class Conflict(RemoteGPUError):
    """The state does not allow it now; the sentence says what to do first."""

    status = 409
    code = "conflict"


class IllegalMove(Conflict):
    """A state machine was asked for a transition that its table does not hold."""

    code = "illegal_move"

    def __init__(self, entity: str, before: str, after: str) -> None:
        super().__init__("{entity} cannot go from {before} to {after}.", entity=entity, before=before, after=after)


class Changed(RemoteGPUError):
    """What was to be edited is not any more what the caller saw."""

    status = 412
    code = "changed"

    def __init__(self) -> None:
        super().__init__("Somebody else changed it meanwhile. Look at it again, then repeat your change.")


class TooLarge(RemoteGPUError):
    """More was sent than is taken at once."""

    status = 413
    code = "too_large"

    def __init__(self, *, limit_mb: int) -> None:
        super().__init__("That is too much at once: at most {limit_mb} MB are taken.", limit_mb=limit_mb)


class TooMany(RemoteGPUError):
    """The caller asks too often."""

    status = 429
    code = "too_many_requests"

    def __init__(self, *, after_seconds: int) -> None:
        super().__init__("Too many requests at once. Wait {after_seconds} s.", after_seconds=after_seconds)


class Busy(TooMany):
    """As many of these are at work as may be at once, whoever asked."""

    def __init__(self, *, count: int, after_seconds: int) -> None:
        super(TooMany, self).__init__(
            "{count} dry runs are at work already. Try again in {after_seconds} s.",
            count=count,
            after_seconds=after_seconds,
        )


class Crowded(TooMany):
    """The caller listens in too many places at once."""

    def __init__(self, *, count: int, after_seconds: int) -> None:
        super(TooMany, self).__init__(
            "You listen in {count} places already. Close one of them first.", count=count, after_seconds=after_seconds
        )


class Abandoned(Conflict):
    """The attempt was given up before it was admitted: a start that timed out must hold nothing."""

    code = "abandoned"


class Unavailable(RemoteGPUError):
    """A remote system or the database does not answer; nothing was changed."""

    status = 503
    code = "unavailable"


class StartFailed(Conflict):
    """What was admitted could not be brought to run, and why. `reason` is one of `orm.EndReason`."""

    code = "start_failed"

    def __init__(self, reason: str, text: str, **facts: Any) -> None:
        super().__init__(text, **facts)
        self.reason = reason


@dataclass(frozen=True)
class Breach:
    """One limit that a wish would break. Amounts are in the resource's own unit (milli-GPUs, milli-cores, bytes, …)."""

    scope: str
    """`user`, `workspace` or `member`."""
    name: str
    """Whose limit it is, as people call it."""
    resource: str
    """`gpus`, `cpu`, `memory`, `environments`, `gpu_hours` or `gpu:<model>`."""
    wanted: int
    held: int
    limit: int


class Refused(RemoteGPUError):
    """A start that the rules do not allow now; nothing is held."""

    status = 403
    code = "refused"


class QuotaExceeded(Refused):
    """Names every limit that would be broken, not only the first."""

    code = "quota_exceeded"

    def __init__(self, breaches: tuple[Breach, ...]) -> None:
        super().__init__("This would go over a limit.", breaches=breaches)
        self.breaches = breaches


class BudgetExceeded(Refused):
    """The month's money is spent."""

    code = "budget_exceeded"


@dataclass(frozen=True)
class HostReason:
    """Why one host cannot take a wish."""

    host: str
    resource: str
    """`gpu:<model>`, `cpu`, `memory` or `status`."""
    free: int
    total: int
    status: str = "online"


class NoCapacity(Refused):
    """No host has room now; explains each host (at most the few that are nearest)."""

    status = 409
    code = "no_capacity"

    def __init__(self, hosts: tuple[HostReason, ...], *, wanted: str, more: int = 0) -> None:
        super().__init__("No host has room for {wanted} now.", wanted=wanted, hosts=hosts, more=more)
        self.hosts = hosts
