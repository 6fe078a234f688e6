"""The one reader behind all streams of a process, on a database of its own."""

import asyncio
from datetime import datetime

from jupyterhub import orm as hub_orm
from sqlalchemy import Engine, event

from remotegpu_hub.db import begin
from remotegpu_hub.domain import events, webhooks
from remotegpu_hub.domain.events import Sight
from remotegpu_hub.orm import EventKind
from remotegpu_hub.runtime import Runtime, Settings
from remotegpu_hub.services.workspaces.events import MOST_WAITING, Feed, Listener


def happen(engine: Engine, count: int, now: datetime) -> None:
    with begin(engine) as session:
        for _ in range(count):
            events.record(session, kind=EventKind.QUOTA, now=now, workspace_id=1)
        webhooks.tell(session, now=now, limit=count)


async def test_a_hundred_listeners_cost_one_reader_and_a_slow_one_is_let_go(engine: Engine, now: datetime):
    hub_orm.Base.metadata.create_all(engine)
    runtime = Runtime(Settings(db_url=""))
    runtime.engine = engine  # type: ignore[misc]
    happen(engine, 3, now)
    feed = Feed()
    running = asyncio.create_task(feed.run(runtime))
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    await asyncio.sleep(1.2)
    assert asked == [], "nobody listens, nobody looks"
    ears = [Listener(None, Sight(everything=True), None) for _ in range(99)]
    deaf = Listener(None, Sight(), None)
    gone = Listener(999, Sight(everything=True), None)
    for one in (*ears, deaf, gone):
        await feed.join(runtime, one)
    assert {one.begins for one in ears} == {3}
    await asyncio.sleep(0.5)
    happen(engine, 2, now)
    await asyncio.sleep(2.5)
    looks = [text for text in asked if text.startswith("SELECT") and "remotegpu_events" in text]
    assert len(looks) <= 9, looks
    assert {tuple(one.id for one in ear.take()) for ear in ears} == {(4, 5)}
    assert deaf.take() == []
    assert gone.ended, "whom the hub does not know hears nothing"
    assert gone.take() == []
    happen(engine, MOST_WAITING + 1, now)
    await asyncio.sleep(4)
    assert all(ear.ended for ear in ears), "who does not take what waits is let go"
    for one in (*ears, deaf, gone):
        feed.leave(one)
    running.cancel()
