"""`remotegpu init` and `remotegpu upgrade-db`: our tables in the hub's database."""

from uuid import uuid4

from .. import migrations
from ..db import begin, prepare_sqlite
from ..domain import prices
from ..orm import Fact
from .command import Command, Text, option
from .stop import Refused, Usage
from .tables import dump

NEXT = """Next, unless the hub's configuration does it:
  remotegpu quotas set --default user gpus=1 cpu=4 memory=16G environments=2 gpu_hours=100 storage=50G
  remotegpu quotas set --default workspace gpus=8 cpu=64 memory=256G environments=20 gpu_hours=2000 storage=1T
  remotegpu prices set cpu 0.05
  remotegpu prices set memory 0.01
  remotegpu doctor"""


class Init(Command):
    name = "init"
    description = (
        "Make our tables in the hub's database, or check that they are current. The hub does the same when it starts. "
        "The hub's own tables are never touched."
    )
    examples = "remotegpu init -f /srv/hub/jupyterhub_config.py --currency CNY"
    creates_database = True
    needs_tables = False
    currency = option(
        Text(help="ISO 4217 code of the hub's one currency. Default: c.RemoteGPU.currency, or USD."), "currency", "CODE"
    )

    def run(self) -> None:
        code = self.currency or self._configured()
        if not (len(code) == 3 and code.isascii() and code.isalpha() and code.isupper()):
            raise Usage(f"`{code}` is not a currency: write its ISO 4217 code, such as CNY.")
        if self.place.sqlite_file is not None:
            if not self.place.sqlite_file.parent.is_dir():
                raise Refused(f"There is no folder {self.place.sqlite_file.parent}.")
            new = not self.place.sqlite_file.exists()
            prepare_sqlite(self.place.url)
            if new:
                self.place.sqlite_file.chmod(0o600)
        before = migrations.state(self.engine)
        migrations.init(self.engine)
        with begin(self.engine) as session:
            if self.currency is not None or session.get(Fact, "currency") is None:
                prices.set_currency(session, code=code)
            if session.get(Fact, "hub_id") is None:
                session.add(Fact(name="hub_id", value=uuid4().hex[:12]))
            currency = prices.currency(session)
        if self.json:
            row = {"url": self.place.shown, "made": before == "empty", "state": "current", "currency": currency}
            self.say(dump({"database": row}))
        elif before == "empty":
            self.say(f"Made the tables in {self.place.shown}; the currency is {currency}.\n{NEXT}")
        else:
            self.say(f"The tables in {self.place.shown} are current; the currency is {currency}.")

    def _configured(self) -> str:
        section = self.place.config.RemoteGPU if self.place.config is not None else {}
        return str(section.get("currency") or "USD")


class UpgradeDb(Command):
    name = "upgrade-db"
    description = (
        "Bring our tables to this version, in one transaction. Stop the hub and make a backup first. Nothing happens "
        "when they are current."
    )
    needs_tables = False

    def run(self) -> None:
        before = migrations.state(self.engine)
        migrations.upgrade(self.engine)
        if self.json:
            self.say(dump({"database": {"url": self.place.shown, "before": before, "state": "current"}}))
        elif before == "current":
            self.say(f"The tables in {self.place.shown} are current already.")
        else:
            self.say(f"Upgraded the tables in {self.place.shown}.")
