"""`remotegpu webhooks`: addresses that are told of events, and how that went."""

from typing import Any, ClassVar, Final

from traitlets import Bool, List

from ..orm import EventKind
from .asking import Asking
from .command import Text, chosen, option, whole
from .stop import Refused, Usage
from .tables import Column, Row, dump, pairs, short

PATH = "webhooks/{id}"
SHOWN = 50
NO_KEY: Final = (
    "The hub's key, from which secrets are made, is not here: it stands in a file that the hub writes at its start. "
    "Run this in the folder in which the hub runs, or `remotegpu login URL` first."
)
COLUMNS = [
    Column("WEBHOOK", "id", right=True),
    Column("ADDRESS", "url"),
    Column("KINDS", lambda row: "all" if len(row["kinds"]) == len(EventKind) else ", ".join(row["kinds"])),
    Column("TOLD", lambda row: "yes" if row["active"] else "paused"),
    Column("SINCE", lambda row: short(row["created_at"])),
]
DELIVERIES = [
    Column("DELIVERY", "id", right=True),
    Column("EVENT", "event_id", right=True),
    Column("KIND", "kind"),
    Column("STATE", "state"),
    Column("TRIES", "tries", right=True),
    Column("SINCE", lambda row: short(row["created_at"])),
    Column("LAST TRY", lambda row: short(row["last_try_at"])),
    Column("SAID", lambda row: row["last_error"] or row["last_status"]),
    Column("NEXT TRY", lambda row: short(row["next_try_at"])),
]


class WebhooksList(Asking):
    name = "list"
    description = "List the webhooks."

    def run(self) -> None:
        self.show_rows("webhooks", self.read("webhooks")["items"], COLUMNS, empty="There are no webhooks.")


class _Kinds(Asking):
    kind = option(List(Text(), help="A kind of event that it is told."), "kind", "KIND", values=EventKind)

    def kinds(self) -> list[EventKind]:
        found = [chosen(EventKind, one, "--kind") for one in self.kind]
        return [one for one in found if one is not None]


class _One(Asking):
    words: ClassVar[tuple[str, ...]] = ("WEBHOOK",)

    @property
    def number(self) -> str:
        return str(whole(self.need(0), "WEBHOOK"))


class WebhooksAdd(_Kinds):
    name = "add"
    words = ("URL",)
    description = (
        "Tell an http or, better, https address of events, by a signed POST for each. The secret that checks the "
        "signatures is printed once: keep it where the receiver finds it."
    )
    examples = "remotegpu webhooks add https://example.org/hook --kind environment.failed --kind budget.threshold"

    def run(self) -> None:
        if not self.kind:
            raise Usage(f"--kind is missing: of what is it told? Write one of {', '.join(EventKind)}.")
        kinds = self.kinds()
        if self.address is None and not (self.place.settings and self.place.settings.webhook_key):
            raise Refused(NO_KEY)
        row = self.create("webhooks", {"url": self.need(0), "kinds": kinds})
        if self.json:
            self.say(dump({"webhook": row}))
            return
        self.say(pairs([("webhook", row["id"]), ("address", row["url"]), ("secret", row["secret"])]))


class WebhooksSet(_One, _Kinds):
    name = "set"
    description = "Change where a webhook sends, or of what it is told; pause it, or let it go on."
    examples = "remotegpu webhooks set 3 --pause\nremotegpu webhooks set 3 --resume --kind environment.failed"
    url = option(Text(help="The new address."), "url", "URL")
    pause = option(
        Bool(False, help="Tell it nothing until --resume; what waits for it waits on, a day at most."), "pause"
    )
    resume = option(Bool(False, help="Tell it again."), "resume")

    def run(self) -> None:
        if self.pause and self.resume:
            raise Usage("--pause and --resume do not go together.")
        body: dict[str, Any] = {"url": self.url, "kinds": self.kinds() or None}
        body["active"] = False if self.pause else True if self.resume else None
        body = {name: value for name, value in body.items() if value is not None}
        if not body:
            raise Usage(f"Nothing to change was named. Try `{self.path} --help`.")
        seen = self.ask("GET", PATH, id=self.number)
        row = self.ask("PATCH", PATH, body=body, match=seen.tag, id=self.number).value
        told = f"is told of {', '.join(row['kinds'])}" if row["active"] else "is paused"
        self.show_one("webhook", row, f"Webhook {row['id']}, {row['url']}, {told}.")


class WebhooksTest(_One):
    name = "test"
    description = "Send a webhook an event of the kind `test` now. Ends with 1 where it was not taken."
    examples = "remotegpu webhooks test 3"

    def run(self) -> None:
        self.needs_hub()
        row = self.ask("POST", f"{PATH}/test", id=self.number).value
        if row["delivered"] or self.json:
            self.show_one("test", row, f"It was taken: {row['status']}, in {row['milliseconds']} ms.")
        if not row["delivered"]:
            raise Refused(f"It was not taken: {_why(row)}")


def _why(row: Row) -> str:
    said = f" It said: {row['said']}" if row["said"] else ""
    return f"{str(row['error']).rstrip('.')}.{said}"


class WebhooksLog(_One):
    name = "log"
    description = "Show what was sent to a webhook in the last week, newest first."
    examples = "remotegpu webhooks log 3 --most 200"
    most = option(Text(help=f"How many at most. Default: {SHOWN}."), "most", "COUNT")

    def run(self) -> None:
        most = whole(self.most, "--most") if self.most is not None else SHOWN
        rows = self.every(f"{PATH}/deliveries", most=most, id=self.number)
        self.show_rows("deliveries", rows, DELIVERIES, empty="Nothing was sent to it in the last week.")


class WebhooksAgain(_One):
    name = "again"
    words = ("WEBHOOK", "DELIVERY")
    description = "Send a webhook one event once more, such as one that was given up."
    examples = "remotegpu webhooks again 3 1207"

    def run(self) -> None:
        delivery = str(whole(self.need(1), "DELIVERY"))
        row = self.ask("POST", f"{PATH}/deliveries/{{delivery}}/again", id=self.number, delivery=delivery).value
        self.show_one("delivery", row, f"Delivery {row['id']} is on its way once more.")


class WebhooksRemove(_One):
    name = "remove"
    description = "Tell an address nothing more. Added again, it has another secret."

    def run(self) -> None:
        row = self.read(PATH, id=self.number)
        self.ask("DELETE", PATH, id=self.number)
        self.show_one("webhook", row, f"Webhook {row['id']}, {row['url']}, is removed.")


class Webhooks(WebhooksList):
    name = "webhooks"
    description = "Addresses that are told of events by signed POSTs. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (WebhooksList, "list them"),
        "add": (WebhooksAdd, "tell an address of events"),
        "set": (WebhooksSet, "change one, pause it or let it go on"),
        "test": (WebhooksTest, "send one a test now"),
        "log": (WebhooksLog, "what was sent to one"),
        "again": (WebhooksAgain, "send one an event once more"),
        "remove": (WebhooksRemove, "tell one nothing more"),
    }
