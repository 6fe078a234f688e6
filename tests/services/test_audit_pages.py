"""The audit log as a page and as a file: filters, names instead of numbers, nothing that a spreadsheet would run."""

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event, insert

from remotegpu_hub import sheets, words
from remotegpu_hub.db import begin, open_engine
from remotegpu_hub.domain import users, workspaces
from remotegpu_hub.errors import Invalid
from remotegpu_hub.orm import AuditEntry, EndReason
from remotegpu_hub.services.api import Call
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import audit_pages, entries, trail
from tests.gpu_hubs import GpuHub
from tests.hubs import TRUST
from tests.worlds import ADMIN, World

NASTY = "<script>alert(1)</script> 训练训练"


def see(hub: GpuHub, user: str, path: str, *, language: str = "en") -> httpx.Response:
    return httpx.get(
        f"{hub.url}services/workspaces/{path}", timeout=60, verify=TRUST, trust_env=False,
        headers={"Authorization": f"token {hub.token_of(user)}", "Accept-Language": language},
    )  # fmt: skip


def call(session: Any, now: datetime) -> Call:
    nobody: Any = None
    return Call(session=session, runtime=nobody, caller=nobody, path={}, query=None, body=None, now=now, actor=ADMIN)


NONE = dict.fromkeys((*audit_pages.FILTERS, "cursor"), "")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"), ("  =1", "'  =1"),
        ("＝1", "'＝1"), ("alice", "alice"), ("a=b", "a=b"), ("", ""), ("训练", "训练"),
    ],
)  # fmt: skip
def test_a_cell_that_a_spreadsheet_would_run_is_guarded(text: str, written: str):
    assert sheets.guarded(text) == written


def test_a_file_is_read_in_parts_and_says_where_it_was_cut_off(engine: Engine, now: datetime):
    row = {"acted_as": None, "entity": "hub", "entity_id": None, "detail": {}, "request_id": None, "address": None}
    with begin(engine) as session:
        for number in range(7):
            at = now + timedelta(seconds=number)
            session.execute(insert(AuditEntry).values(at=at, actor=f"={number}", action="x", **row))
    view, given = View("en"), dict(NONE)
    with begin(engine, read_only=True) as session:
        whole, count, following = audit_pages.read_part(call(session, now), view, given, 7)
        assert (count, following) == (7, None)
        assert [line.split(",")[1] for line in whole.splitlines()] == [f"'={number}" for number in range(6, -1, -1)]
        part, count, following = audit_pages.read_part(call(session, now), view, given, 5)
        assert (count, following) == (5, None)
        assert "Cut off after" in part.splitlines()[-1]


def test_filters_find_things_by_their_name_and_days_are_whole(engine: Engine, now: datetime):
    world = World(engine, now).furnish(hosts=1)
    world.workspace("vision", owner="alice", display_name=NASTY)
    with begin(engine, read_only=True) as session:
        lab = workspaces.by_name(session, name="vision")
        for which in ("vision", NASTY, str(lab.id)):
            query = audit_pages.asked(session, {**NONE, "entity": "workspace", "which": which})
            assert query is not None
            rows, _ = trail.list_audit(Call(**{**vars(call(session, now)), "query": query}))
            assert [one.action for one in rows] == ["workspace.create"]
            (told,) = entries.tell(session, View("zh"), rows)
            assert (told.what, told.kind, told.thing) == ("工作区已创建", "工作区", NASTY)
        assert audit_pages.asked(session, {**NONE, "entity": "workspace", "which": "none"}) is None
        day = f"{now:%Y-%m-%d}"
        query = audit_pages.asked(session, {**NONE, "since": day, "until": day})
        assert query is not None
        assert (query.until - query.since, query.since <= now < query.until) == (timedelta(days=1), True)
        for wrong in ({"since": "yesterday"}, {"until": "9999-12-31"}, {"which": "7"}, {"cursor": "x"}):
            with pytest.raises(Invalid):
                trail.list_audit(
                    Call(**{**vars(call(session, now)), "query": audit_pages.asked(session, {**NONE, **wrong})})
                )


@pytest.mark.parametrize(
    "given", [{}, {"actor": "bob"}, {"action": "quota.put"}, {"entity": "host"}, {"entity": "host", "entity_id": 1},
              {"since": datetime(2026, 1, 1, tzinfo=UTC), "until": datetime(2026, 2, 1, tzinfo=UTC)}],
    ids=lambda given: " ".join(given) or "all",
)  # fmt: skip
def test_a_page_reads_no_more_of_a_long_log_than_it_shows(sqlite_url: str, now: datetime, given: dict[str, Any]):
    engine, statements = open_engine(sqlite_url), []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2:4]))
    with begin(engine, read_only=True) as session:
        trail.list_audit(Call(**{**vars(call(session, now)), "query": trail.AuditAsked(**given)}))
        statement, values = statements[-1]
        plan = [row[-1] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    engine.dispose()
    assert all("USING INDEX" in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


def test_a_change_is_told_with_what_it_was_and_what_it_became(engine: Engine, now: datetime):
    world = World(engine, now).furnish(hosts=1)
    world.budget("lab", 5)
    world.budget("lab", 7.5)
    entry = world.audit("budget.put")[-1]
    with begin(engine, read_only=True) as session:
        (told,) = entries.tell(session, View("en", currency="CNY"), [entry])
    assert [(line.label, line.before, line.after) for line in told.lines] == [("Budget a month", "¥5.00", "¥7.50")]


def test_a_page_that_does_not_understand_blames_nobody_else_and_who_asks_too_often_is_told_how_long_to_wait(
    hub: GpuHub,
):
    with httpx.Client(
        base_url=f"{hub.url}services/workspaces/", timeout=60, verify=TRUST, trust_env=False,
        headers={"Authorization": f"token {hub.token_of('nobody-yet')}"},
    ) as client:  # fmt: skip
        answer = client.put("limits")
        assert (answer.status_code, "Something broke" in answer.text) == (405, False)
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: client.put("limits"), range(400)))
        refused = [one for one in answers if one.status_code == 429]
        assert refused
        assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)


def test_an_admin_reads_filters_and_downloads_and_nobody_else_does(hub: GpuHub):
    with begin(hub.engine) as session:
        lab, alice = workspaces.by_name(session, name="lab"), users.by_name(session, name="alice")
        workspaces.update_settings(session, workspace=lab, display_name=NASTY, actor=ADMIN, now=hub.world.now)
        given = {"owner": alice, "actor": ADMIN, "now": hub.world.now}
        workspaces.create(session, name="audited", display_name="=cmd|' /C calc'!A0", **given)
    shown = see(hub, "admin", "admin/audit?entity=workspace&which=lab&action=workspace.update")
    assert shown.status_code == 200, shown.text
    assert "&lt;script&gt;" in shown.text
    assert "<script>alert" not in shown.text
    assert "Workspace changed" in shown.text
    assert see(hub, "admin", "admin/audit?entity=workspace&which=lab", language="zh").text.count("工作区已更改") >= 1
    file = see(hub, "admin", "admin/audit.csv?actor=admin")
    assert file.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert file.content.startswith(b"\xef\xbb\xbf")
    lines = list(csv.DictReader(io.StringIO(file.content.decode("utf-8-sig"))))
    assert {line["actor"] for line in lines} == {"admin"}
    assert [line for line in lines if "训练训练" in line["detail"]]
    assert "Nothing fits." in see(hub, "admin", "admin/audit?actor=nobody").text
    wrong = see(hub, "admin", "admin/audit?since=yesterday")
    assert (wrong.status_code, "is not a date" in wrong.text) == (400, True)
    for path in ("admin/audit", "admin/audit.csv"):
        refused = see(hub, "alice", path)
        assert (refused.status_code, "Only an admin of the hub may do that." in refused.text) == (403, True)


def test_every_label_of_an_entry_is_known_in_chinese():
    said = [*entries.ACTIONS.values(), *entries.KINDS.values(), *entries.REASONS.values()]
    said += [label for label, _ in entries.FIELDS.values()]
    assert [text for text in said if text not in words._catalogue()] == []
    assert {reason.value for reason in EndReason} == set(entries.REASONS)


def test_what_somebody_wrote_is_told_as_it_is(engine: Engine, now: datetime):
    odd = {"reason": "we need { more %s {0}", "message": "}{", "unknown": "{", "wanted": {"gpus": "{"}}
    entry = AuditEntry(at=now, actor="{", action="odd.{", entity="odd", entity_id=None, detail=odd)
    with begin(engine, read_only=True) as session:
        (told,) = entries.tell(session, View("zh"), [entry])
    assert {line.after for line in told.lines} >= {"we need { more %s {0}", "}{", "{"}
    assert told.what == "odd.{"
