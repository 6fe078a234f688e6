"""`remotegpu doctor`: check everything, a line each, and say what to do."""

from sqlalchemy.exc import SQLAlchemyError

from .. import migrations, words
from ..errors import RemoteGPUError
from ..runtime import utcnow
from . import books, machine, tables
from .command import Command
from .findings import Finding, Findings, Level, problem
from .stop import Refused


class Doctor(Command):
    name = "doctor"
    description = (
        "Check versions, configuration, database, prices, quotas, counters, GPUs and runs, a line each: ok, warn or "
        "problem. Changes nothing. Ends with 1 when there is a problem."
    )
    needs_tables = False

    def run(self) -> None:
        found = []
        for finding in self.check():
            found.append(finding)
            if not self.json:
                line = f"{finding.level.value:7}  {finding.subject}: {finding.text}"
                self.say(tables.printable(line))
        problems = sum(one.level == Level.PROBLEM for one in found)
        if self.json:
            checks = [{"level": one.level.value, "subject": one.subject, "text": one.text} for one in found]
            self.say(tables.dump({"checks": checks, "problems": problems}))
        if problems:
            raise Refused(f"{problems} problem{'s' if problems > 1 else ''} found.")

    def check(self) -> Findings:
        """Every check in the order in which one needs the other."""
        yield from machine.check_versions()
        yield from machine.check_configuration(self.place)
        reason = self._unreachable()
        if reason is not None:
            yield problem("database", reason)
        yield from machine.check_running(self.place, None if reason else self.engine)
        yield from machine.check_control_groups()
        if reason is None:
            yield from self._inside()

    def _inside(self) -> Findings:
        now = utcnow()
        try:
            yield from machine.check_database(self.place, self.engine)
            with self.transaction(read_only=True) as session:
                inside: list[Finding] = list(books.check_all(session, now))
            yield from inside
            yield from machine.check_runs(self.place, self.engine, now)
            yield from machine.check_numbers(self.place, self.engine)
        except (RemoteGPUError, SQLAlchemyError) as error:
            yield problem("database", _said(error))

    def _unreachable(self) -> str | None:
        """Why the database cannot be looked into, or None."""
        try:
            state = migrations.state(self.engine)
        except (Refused, RemoteGPUError, SQLAlchemyError) as error:
            return _said(error)
        return {
            "empty": "it has no tables of ours yet: run `remotegpu init`.",
            "behind": "it is from an older version: back it up, then run `remotegpu upgrade-db`.",
            "ahead": "it is from a newer version of remotegpu-hub: install that version again.",
        }.get(state)


def _said(error: Exception) -> str:
    if isinstance(error, RemoteGPUError):
        return " ".join(words.explain(error, "en"))
    if isinstance(error, Refused):
        return str(error)
    said = str(getattr(error, "orig", None) or type(error).__name__).strip()
    return f"it does not answer ({said.splitlines()[0]})."
