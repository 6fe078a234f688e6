"""`remotegpu events`: what happened in the last week, and what happens from now on."""

import json
import sys
import time
from typing import Any, Final

from traitlets import Bool

from ..clients.api import ApiClient
from ..errors import Unavailable
from ..orm import EventKind
from .asking import Asking
from .audit import facts
from .command import Text, chosen, option, whole
from .stop import Refused, Usage
from .tables import Column, pad, short, width

SHOWN: Final = 50
PAUSE_SECONDS: Final = 3.0
MOST_BREAKS: Final = 20
"""Streams in a row that end at once; then the hub is called gone."""
ENDS: Final = "The hub ends the stream of events again and again."
LASTING_SECONDS: Final = 30.0
COLUMNS: Final = [
    Column("EVENT", "id", right=True),
    Column("AT", lambda row: short(row["at"])),
    Column("KIND", "kind"),
    Column("WORKSPACE", "workspace"),
    Column("USER", "user"),
    Column("ENVIRONMENT", "environment_id", right=True),
    Column("DETAIL", lambda row: facts(row["detail"])),
]
_WIDTHS: Final = (6, 20, max(width(kind.value) for kind in EventKind), 16, 12, 11, 0)
"""Of the columns where lines come one by one."""


class Events(Asking):
    name = "events"
    description = (
        "Show what happened in the last week of what you may see, newest first; or with --follow what happens from now "
        "on, each as a line, until Ctrl-C. A break of the connection loses nothing."
    )
    examples = (
        "remotegpu events --kind environment.failed\nremotegpu events --environment 17\nremotegpu events -f --json"
    )
    kind = option(Text(help="Only this kind."), "kind", "KIND", values=EventKind)
    mine = option(Bool(False, help="Only what is about you."), "mine")
    after = option(Text(help="Only what was told after the event with this number."), "after", "EVENT")
    environment = option(Text(help="Only what happened to this environment."), "environment", "ID")
    most = option(Text(help=f"How many at most. Default: {SHOWN}."), "most", "COUNT")
    follow = option(Bool(False, help="Go on with what happens. By the API only."), "follow", short="f")

    def run(self) -> None:
        query = {
            "kind": chosen(EventKind, self.kind, "--kind"), "mine": True if self.mine else None,
            "after": whole(self.after, "--after") if self.after is not None else None,
        }  # fmt: skip
        if self.follow:
            if self.environment is not None or self.most is not None:
                raise Usage("--follow goes with --kind, --mine and --after only.")
            self._follow(self.needs_hub(), query)
            return
        most = whole(self.most, "--most") if self.most is not None else SHOWN
        if self.environment is None:
            rows = self.every("events", query=query, most=most)
        else:
            if any(value is not None for value in query.values()):
                raise Usage("--environment goes with --most only.")
            number = str(whole(self.environment, "--environment"))
            rows = self.every("environments/{id}/events", most=most, id=number)
        self.show_rows("events", rows, COLUMNS, empty="Nothing of that kind happened in the last week.")

    def _follow(self, hub: ApiClient, query: dict[str, Any]) -> None:
        """Print each event as it comes; behind a break go on where it was. Raises: RemoteGPUError, Refused."""
        last, breaks = query["after"], 0
        if last is None:
            newest = self.read("events", query={"limit": 1})["items"]
            last = newest[0]["id"] if newest else 0
        while True:
            began, lost = time.monotonic(), None
            try:
                for one in hub.events("events", {}, query={**query, "after": last}):
                    self.say(json.dumps(one, ensure_ascii=False) if self.json else _line(one))
                    sys.stdout.flush()
                    last, breaks = one["id"], 0
            except Unavailable as error:
                lost = error
            breaks = 1 if time.monotonic() - began > LASTING_SECONDS else breaks + 1
            if breaks > MOST_BREAKS:
                raise lost or Refused(ENDS)
            time.sleep(PAUSE_SECONDS)


def _line(event: dict[str, Any]) -> str:
    cells = zip(COLUMNS, _WIDTHS, strict=True)
    return "  ".join(pad(column.text(event), size, right=column.right) for column, size in cells).rstrip()
