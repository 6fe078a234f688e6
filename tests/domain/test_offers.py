"""The numbers of the spawn page: computed by the code that admits, so that the two cannot disagree."""

from dataclasses import replace

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import catalog, inventory, users, workspaces
from remotegpu_hub.domain.environments import Choice, LimitBar, Offers, PriceLine
from remotegpu_hub.domain.offers import offers
from remotegpu_hub.errors import RemoteGPUError
from remotegpu_hub.orm import HostStatus, ImageStatus, QuotaScope
from remotegpu_hub.units import GIB, MICROS, UNLIMITED

from ..worlds import A100, ADMIN, IMAGE, World, gpus, host


def page(world: World, choice: Choice | None = None, *, user: str = "bob", server: str = "") -> Offers:
    with db.begin(world.engine, read_only=True) as session:
        return offers(
            session,
            user=users.by_name(session, name=user),
            server_name=server,
            choice=choice or Choice(),
            rules=world.rules,
            now=world.now,
        )


def small(world: World, **columns: object) -> None:
    with db.begin(world.engine) as session:
        wanted = {"gpu_model": A100, "gpu_slots": 1, "cpu_millis": 4000, "memory_bytes": 16 * GIB, **columns}
        catalog.put_flavor(session, name="small", display_name="Small", actor=ADMIN, now=world.now, **wanted)  # type: ignore[arg-type]


def test_a_page_shows_what_there_is_its_price_and_what_is_left(world: World):
    small(world)
    world.quota(QuotaScope.USER, user="bob", gpu_millis=4000)
    world.budget("lab", 36)
    world.admit("bob", server="other", gpus=1)
    found = page(world)
    assert (found.user, found.currency, found.time_zone, found.port_services) == (
        "bob", "USD", "UTC", ("ssh", "tensorboard"),
    )  # fmt: skip
    assert found.choice == Choice("lab", IMAGE, "small", A100, 1, 4000, 16 * GIB, (), IMAGE)
    assert [(one.name, one.role, one.gpu_millis_left, one.budget_left) for one in found.workspaces] == [
        ("lab", "member", 3000, 36 * MICROS)
    ]
    assert [(one.model, one.free, one.usable, one.unit_price, one.reason) for one in found.gpus] == [
        (A100, 15, 16, 12 * MICROS, None)
    ]
    assert [(one.name, one.price_per_hour, one.reason) for one in found.flavors] == [("small", 18 * MICROS, None)]
    quote = found.quote
    assert quote is not None
    assert quote.lines == (
        PriceLine(f"gpu:{A100}", 1, 12 * MICROS),
        PriceLine("cpu", 4000, 2 * MICROS),
        PriceLine("memory", 16 * GIB, 4 * MICROS),
    )
    assert quote.limits == (
        LimitBar("user", "bob", "gpus", 1000, 1000, 4000),
        LimitBar("budget", "lab", "2026-11", 0, 0, 36 * MICROS),
    )
    assert (quote.price_per_hour, quote.refusal, quote.hosts_that_fit, found.problems) == (18 * MICROS, None, 2, ())
    lasts = 36 * 3600 / (18 + 12 + 0.5 + 0.25)
    assert quote.budget_lasts_until is not None
    assert (quote.budget_lasts_until - world.now).total_seconds() == int(lasts)
    assert not quote.budget_lasts_month


@pytest.mark.parametrize(
    "wanted",
    [
        {"gpus": 1},
        {"gpus": 5},
        {"gpus": 8, "cpu": 100_000},
        {"cpu": 10**9},
        {"memory": 10**15},
        {"model": "H100", "gpus": 1},
        {"gpus": 2, "workspace": "broke"},
        {"workspace": "broke", "cpu": 10**9},
    ],
    ids=["fits", "quota", "capacity", "cpu", "memory", "no-price", "budget", "budget-and-capacity"],
)
def test_the_quote_says_what_admission_would_say(world: World, wanted: dict):
    world.quota(QuotaScope.USER, user="bob", gpu_millis=8000, models={A100: 4})
    world.quota(QuotaScope.USER, user="bob", models={A100: None}) if "cpu" in wanted else None
    world.see(host("new", gpus=gpus(1, model="H100", prefix="new")))
    world.workspace("broke", owner="bob")
    world.budget("broke", 0)
    quote = page(world, world.choice(**wanted)).quote
    assert quote is not None
    if quote.refusal is None:
        world.admit("bob", **wanted)
        return
    with pytest.raises(RemoteGPUError) as caught:
        world.admit("bob", **wanted)
    assert type(caught.value) is type(quote.refusal) or "workspace" in wanted
    assert str(caught.value) == str(quote.refusal) or "workspace" in wanted


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        (Choice(workspace="nowhere", gpus=0), "The workspace was not found."),
        (Choice(image="local:none"), "The image was not found."),
        (Choice(flavor="none"), "The flavor was not found."),
        (Choice(gpu_model="B300", gpus=1), "B300 is not a GPU model of this hub."),
        (Choice(ports=("telnet",)), "telnet is not a port service here: choose of ssh, tensorboard."),
        (Choice(name="x" * 101), "A display name has 1 to 100 printable characters."),
    ],
    ids=["workspace", "image", "flavor", "model", "port", "name"],
)
def test_a_prefilled_part_that_does_not_exist_is_dropped_and_told(world: World, choice: Choice, problem: str):
    found = page(world, choice)
    assert [str(one) for one in found.problems] == [problem]
    assert found.quote is not None
    assert (found.choice.workspace, found.choice.image) == ("lab", IMAGE)


def test_every_wrong_part_at_once_still_gives_a_page(world: World):
    wrong = Choice("nowhere", "local:none", "none", "B300", 99, -1, -1, ("telnet",), "\n")
    found = page(world, wrong)
    assert found.quote is not None
    assert len(found.problems) >= 3


def test_a_kept_environment_whose_workspace_or_image_is_gone_gives_a_page_with_the_reason(world: World):
    world.end(world.admit(server="train", gpus=2).attempt)
    kept = page(world, server="train")
    assert (kept.choice.gpus, kept.problems) == (2, ())
    world.image("local:other")
    world.image(status=ImageStatus.BLOCKED)
    found = page(world, server="train")
    assert [str(one) for one in found.problems] == ["The image was not found."]
    assert found.quote is not None
    world.workspace("bobs", owner="bob")
    with db.begin(world.engine) as session:
        lab, bob = workspaces.by_name(session, name="lab"), users.by_name(session, name="bob")
        workspaces.remove_member(session, workspace=lab, user=bob, actor=ADMIN, now=world.now)
    found = page(world, server="train")
    assert [str(one) for one in found.problems] == ["The workspace was not found."]
    assert found.choice.workspace == "bobs"


def test_what_cannot_start_carries_its_reason(world: World):
    small(world, gpu_slots=4)
    world.quota(QuotaScope.USER, user="bob", gpu_millis=0)
    found = page(world)
    assert [type(one.reason).__name__ for one in (*found.flavors, *found.gpus)] == ["QuotaExceeded"] * 2
    world.quota(QuotaScope.USER, user="bob", gpu_millis=UNLIMITED)
    with db.begin(world.engine) as session:
        for name in ("host-1", "host-2"):
            inventory.set_host_status(session, name=name, status=HostStatus.MAINTENANCE, actor=ADMIN, now=world.now)
    found = page(world)
    assert (found.gpus, type(found.flavors[0].reason).__name__) == ((), "NoCapacity")


def test_who_belongs_nowhere_and_who_only_looks_get_a_page_without_a_quote(world: World):
    world.user("dave")
    nowhere = page(world, user="dave")
    assert (nowhere.quote, nowhere.workspaces) == (None, ())
    assert "You belong to no workspace yet" in str(nowhere.problems[0])
    world.budget("lab", 5)
    viewer = page(world, user="carol")
    assert viewer.quote is None
    assert [(one.name, one.budget_left, type(one.reason).__name__) for one in viewer.workspaces] == [
        ("lab", None, "Denied")
    ]


def test_simulated_gpus_are_told(world: World):
    assert not page(world).simulated
    world.see(replace(host("host-1"), simulated=True))
    assert page(world).simulated


def test_a_page_writes_nothing(world: World):
    before = len(world.audit())
    page(world, world.choice(gpus=1))
    assert len(world.audit()) == before
