"""Who changes the catalogue at the same moment as somebody else: the later one counts, whole."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from remotegpu_hub.db import begin
from remotegpu_hub.domain import catalog, workspaces
from remotegpu_hub.orm import Flavor, Image, Visibility
from remotegpu_hub.units import GIB

from ..worlds import ADMIN, IMAGE, World


def put(session: Session, now: datetime, **given: Any) -> None:
    usual = {"display_name": "Small", "gpu_model": None, "gpu_slots": 0, "cpu_millis": 1000, "memory_bytes": GIB}
    catalog.put_flavor(session, name="small", **{**usual, **given}, actor=ADMIN, now=now)


def retire(session: Session, now: datetime) -> None:
    flavor = session.scalars(select(Flavor).where(Flavor.name == "small")).one()
    catalog.retire_flavor(session, flavor=flavor, actor=ADMIN, now=now)


def one_after_the_other(
    engine: Engine, first: Callable[[Session], None], then: Callable[[Session], None]
) -> None:  # fmt: skip
    """Let the second begin while the first is not committed."""

    def late() -> None:
        with begin(engine) as session:
            then(session)

    with ThreadPoolExecutor(1) as threads:
        with begin(engine) as session:
            first(session)
            waits = threads.submit(late)
            time.sleep(0.5)
        waits.result(30)


@pytest.mark.parametrize("before", ["put", "retire"])
def test_a_flavor_is_as_the_later_of_two_admins_put_it(engine: Engine, now: datetime, before: str):
    with begin(engine) as session:
        put(session, now)
    first = {"put": lambda session: put(session, now, cpu_millis=8000), "retire": lambda session: retire(session, now)}
    one_after_the_other(engine, first[before], lambda session: put(session, now, memory_bytes=2 * GIB))
    with begin(engine, read_only=True) as session:
        found = session.scalars(select(Flavor)).one()
        assert (found.cpu_millis, found.memory_bytes, found.retired) == (1000, 2 * GIB, False)


def test_a_flavor_that_is_retired_while_it_is_put_is_retired(engine: Engine, now: datetime):
    with begin(engine) as session:
        put(session, now)
        retire(session, now)
    one_after_the_other(engine, lambda session: put(session, now), lambda session: retire(session, now))
    with begin(engine, read_only=True) as session:
        assert session.scalars(select(Flavor.retired)).one()


def test_an_image_is_seen_by_whom_the_later_of_two_admins_named(engine: Engine, now: datetime):
    world = World(engine, now).furnish(hosts=0)
    world.workspace("vision", owner="alice")

    def show(session: Session, name: str | None) -> None:
        space = workspaces.by_name(session, name=name) if name else None
        whose = {"visibility": Visibility.WORKSPACE if space else Visibility.PUBLIC}
        catalog.put_image(
            session, reference=IMAGE, display_name="Python", workspace_id=space.id if space else None, actor=ADMIN,
            now=now, **whose,
        )  # fmt: skip

    with begin(engine) as session:
        show(session, "lab")
    one_after_the_other(engine, lambda session: show(session, None), lambda session: show(session, "vision"))
    with begin(engine, read_only=True) as session:
        image = session.scalars(select(Image)).one()
        vision = workspaces.by_name(session, name="vision").id
        assert (image.visibility, image.workspace_id) == (Visibility.WORKSPACE, vision)
