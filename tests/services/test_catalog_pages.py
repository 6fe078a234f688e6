"""Flavors and images: by the API with ETags, and on pages for admins of the hub."""

import re
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, select

from remotegpu_hub.db import begin
from remotegpu_hub.domain import catalog
from remotegpu_hub.errors import Conflict, Invalid
from remotegpu_hub.orm import Image, ImageStatus
from remotegpu_hub.services.workspaces import catalog_pages
from remotegpu_hub.units import GIB
from tests.gpu_hubs import GpuHub
from tests.worlds import A100, ADMIN, World, at_once

from .test_all_spaces import send
from .test_api import Desk
from .test_audit_pages import NASTY, call, see

FLAVOR = {"display_name": NASTY, "gpu_model": A100, "gpu_slots": 1, "cpu_millis": 4000, "memory_bytes": 8 * GIB}


@pytest.fixture(scope="module")
def desk(hub: GpuHub) -> Desk:
    return Desk(hub)


def test_a_flavor_costs_what_it_holds_at_the_prices_in_force(engine: Engine, now: datetime):
    world = World(engine, now).furnish(hosts=1)
    world.price("cpu", 2, at=now + timedelta(hours=1))
    with begin(engine) as session:
        for name, model in (("priced", A100), ("unpriced", "H200")):
            catalog.put_flavor(session, name=name, display_name=name, gpu_model=model, gpu_slots=1, cpu_millis=4000,
                               memory_bytes=8 * GIB, actor=ADMIN, now=now)  # fmt: skip
    for moment, expected in ((now, 16_000_000), (now + timedelta(hours=1), 22_000_000)):
        with begin(engine, read_only=True) as session:
            rows = catalog_pages.read_flavors(call(session, moment))
            assert {row.flavor["name"]: row.per_hour for row in rows} == {"priced": expected, "unpriced": None}


@pytest.mark.parametrize("memory", [GIB, 3 * 2**29, 8 * GIB + 1, 2**29])
def test_what_the_form_shows_is_read_back_without_loss(memory: int):
    shown = {**FLAVOR, "name": "x", "workspace": None, "memory_bytes": memory, "cpu_millis": 1500}
    read = catalog_pages._as_flavor(catalog_pages._as_fields(shown))
    assert read == {name: value for name, value in shown.items() if name != "name"}
    with pytest.raises(Invalid):
        catalog_pages._as_flavor({**catalog_pages._as_fields(shown), "gpu_slots": "1.5"})


def test_a_flavor_is_made_changed_by_one_of_two_and_retired_by_the_api(desk: Desk):
    made = desk.ask("hub admin", "PUT", "flavors/big", json=FLAVOR)
    assert (made.status_code, made.json()["retired"]) == (200, False)
    seen = made.headers["ETag"]
    first = desk.ask("hub admin", "PUT", "flavors/big", json={**FLAVOR, "gpu_slots": 2}, headers={"If-Match": seen})
    second = desk.ask("hub admin", "PUT", "flavors/big", json={**FLAVOR, "gpu_slots": 4}, headers={"If-Match": seen})
    assert (first.status_code, second.status_code) == (200, 412)
    assert desk.ask("hub admin", "GET", "flavors/big").json()["gpu_slots"] == 2
    assert desk.ask("hub admin", "DELETE", "flavors/big").status_code == 204
    assert desk.ask("hub admin", "DELETE", "flavors/big").status_code == 204, "twice is no fault"
    assert desk.ask("hub admin", "GET", "flavors/big").json()["retired"] is True
    assert desk.ask("hub admin", "DELETE", "flavors/nothing").status_code == 404
    for wrong in ({"gpu_slots": 0}, {"gpu_model": None}, {"cpu_millis": 0}, {"memory_bytes": 2**63}, {"price": 1}):
        assert desk.ask("hub admin", "PUT", "flavors/big", json={**FLAVOR, **wrong}).status_code == 400, wrong
    assert desk.ask("hub admin", "PUT", "flavors/big", json={**FLAVOR, "workspace": "nothing"}).status_code == 404
    assert desk.ask("hub admin", "PUT", "flavors/two%20words", json=FLAVOR).status_code == 400


def test_an_image_is_blocked_and_kept_for_a_workspace_by_the_api(desk: Desk):
    path = f"images/{desk.image}"
    before = desk.ask("hub admin", "GET", path)
    edit = {"status": "blocked", "visibility": "workspace", "workspace": "lab"}
    changed = desk.ask("hub admin", "PATCH", path, json=edit, headers={"If-Match": before.headers["ETag"]}).json()
    assert {name: changed[name] for name in edit} == edit
    late = desk.ask("hub admin", "PATCH", path, json={}, headers={"If-Match": before.headers["ETag"]})
    assert late.status_code == 412
    for wrong in ({"visibility": "workspace"}, {"workspace": "lab"}, {"status": "retired"}, {"visibility": "private"}):
        assert desk.ask("hub admin", "PATCH", path, json=wrong).status_code == 400, wrong
    back = desk.ask("hub admin", "PATCH", path, json={"status": "active", "visibility": "public"}).json()
    assert back == before.json()
    assert desk.image in [one["id"] for one in desk.ask("hub admin", "GET", "images").json()["items"]]
    with begin(desk.hub.engine) as session:
        given = {"actor": ADMIN, "now": desk.hub.world.now}
        old = catalog.put_image(session, reference="r/x", digest="sha256:1", display_name="old", **given)
        catalog.retire_digests(session, reference="r/x", digest="sha256:2", **given)
    assert desk.ask("hub admin", "PATCH", f"images/{old.id}", json={"display_name": "x"}).status_code == 409


def test_an_admin_changes_the_catalogue_on_pages_and_nobody_else_does(hub: GpuHub):
    fields = {"name": "paged", "display_name": NASTY, "gpu_model": A100, "gpu_slots": "1", "cpu": "4", "memory": "8G"}
    for path in ("admin/catalog", "admin/catalog/flavors"):
        assert see(hub, "alice", path).status_code == 403
    assert send(hub, "alice", "admin/catalog/flavors", **fields).status_code == 403
    wrong = send(hub, "admin", "admin/catalog/flavors", **{**fields, "memory": "much"})
    assert (wrong.status_code, "much is not a size" in wrong.text) == (400, True)
    assert send(hub, "admin", "admin/catalog/flavors", **fields).status_code == 303
    assert send(hub, "admin", "admin/catalog/flavors", **fields).status_code == 409
    shown = see(hub, "admin", "admin/catalog")
    assert "&lt;script&gt;" in shown.text
    assert "<script>alert" not in shown.text
    form = see(hub, "admin", "admin/catalog/flavors/paged").text
    seen = re.search(r'name="seen" value="([^"]+)"', form)
    assert seen is not None
    tag = seen[1].replace("&#34;", '"')
    change = {**fields, "seen": tag}
    assert send(hub, "admin", "admin/catalog/flavors/paged", **{**change, "cpu": "2"}).status_code == 303
    late = send(hub, "admin", "admin/catalog/flavors/paged", **{**change, "cpu": "3"})
    assert (late.status_code, "Look at it again" in late.text) == (412, True)
    assert send(hub, "admin", "admin/catalog/flavors/paged/retire").status_code == 303
    assert see(hub, "admin", "admin/catalog/flavors/nothing").status_code == 404
    (image,) = hub.world.read(select(Image.id).where(Image.reference == hub.image("mute")))
    path = f"admin/catalog/images/{image}"
    assert see(hub, "alice", path).status_code == 403
    edit = {"display_name": NASTY, "status": "deprecated", "visibility": "public"}
    assert send(hub, "admin", path, **edit).status_code == 303
    assert hub.world.read(select(Image.status).where(Image.id == image)) == [ImageStatus.DEPRECATED]
    assert "Nothing fits." in see(hub, "admin", "admin/catalog?search=no-such-image").text
    assert see(hub, "admin", "admin/catalog?status=odd").status_code == 400


def test_whoever_makes_a_new_flavor_never_changes_one_of_that_name(engine: Engine, now: datetime):
    """Not even one that another made a moment ago: whoever looks first and writes then would meet it between the two."""
    given = {"name": "mine", "display_name": "x", "gpu_model": None, "gpu_slots": 0, "cpu_millis": 1000,
             "memory_bytes": GIB, "actor": ADMIN, "now": now}  # fmt: skip
    World(engine, now)
    with begin(engine) as session:
        catalog.put_flavor(session, new=True, **given)
    with pytest.raises(Conflict, match="mine"), begin(engine) as session:
        catalog.put_flavor(session, new=True, **given)


def test_of_many_who_make_the_same_at_once_one_does_and_the_others_are_told(hub: GpuHub):
    for path, fields in (
        ("admin/catalog/flavors", {"name": "raced", "display_name": "x", "gpu_slots": "0", "cpu": "1", "memory": "1G"}),
        ("admin/spaces/new", {"name": "raced", "display_name": "x", "owner": "alice", "time_zone": "UTC"}),
    ):
        codes = at_once(6, lambda _, path=path, fields=fields: send(hub, "admin", path, **fields).status_code)
        assert sorted(codes) == [303, *[409] * 5]
