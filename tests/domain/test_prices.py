from datetime import timedelta

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import prices
from remotegpu_hub.errors import Conflict, Invalid
from remotegpu_hub.units import GIB, MICROS

from ..worlds import A100, World, gpus, host


@pytest.mark.parametrize(
    ("resource", "amount", "minutes", "error"),
    [
        ("cpu", 1, 0, None),
        ("cpu", 1, 60, None),
        ("cpu", 0, 0, None),
        ("cpu", 1, -1, "past"),
        ("gpu:H100", 30, -60 * 24 * 400, None),
        ("cpu", -1, 0, "negative"),
        ("disk", 1, 0, "not a resource"),
        ("gpu:", 1, 0, "not a resource"),
        ("gpu:" + "x" * 97, 1, 0, "not a resource"),
    ],
    ids=["now", "later", "free", "past", "first-of-past", "negative", "unknown", "no-model", "too-long"],
)
def test_a_price_holds_from_now_or_later_on(world: World, resource: str, amount: float, minutes: int, error: str):
    at = world.now + timedelta(minutes=minutes)
    if error:
        with pytest.raises(Invalid, match=error):
            world.price(resource, amount, at=at)
        return
    world.price(resource, amount, at=at)
    with db.begin(world.engine) as session:
        before = prices.at(session, now=at - timedelta(seconds=1))
        assert prices.at(session, now=at)[resource].unit_price == amount * MICROS
        assert resource not in before or before[resource].unit_price == MICROS // 2
    assert world.audit("price.put")[-1].detail["unit_price"] == amount * MICROS


def test_two_prices_cannot_begin_at_one_instant_and_the_same_twice_is_one(world: World):
    at = world.now + timedelta(hours=1)
    world.price("cpu", 1, at=at)
    entries = len(world.audit())
    world.price("cpu", 1, at=at)
    assert len(world.audit()) == entries
    with pytest.raises(Conflict):
        world.price("cpu", 2, at=at)


def test_an_hour_is_priced_by_its_parts_and_snapshot_on_the_run(world: World):
    run = world.admit(gpus=2, cpu=1500, memory=3 * GIB)
    assert run.price_per_hour == (2 * 12 + 1.5 * 0.5 + 3 * 0.25) * MICROS
    assert run.prices == {f"gpu:{A100}": 12 * MICROS, "cpu": MICROS // 2, "memory": MICROS // 4}
    world.price("cpu", 9, at=world.now)
    assert world.allocation(run.attempt).prices["cpu"] == MICROS // 2
    assert world.admit(server="later").prices["cpu"] == 9 * MICROS


def test_nothing_runs_unpriced(world: World):
    world.see(host("new", gpus=gpus(1, model="H100", prefix="new")))
    with pytest.raises(Invalid, match="No price is set for gpu:H100"):
        world.admit(model="H100", gpus=1)
    assert world.open_runs() == []


def test_the_currency_is_written_once(world: World):
    with db.begin(world.engine) as session:
        assert prices.currency(session) == "USD"
        prices.set_currency(session, code="CNY")
        prices.set_currency(session, code="CNY")
        assert prices.currency(session) == "CNY"
        with pytest.raises(Conflict, match="cannot become EUR"):
            prices.set_currency(session, code="EUR")
