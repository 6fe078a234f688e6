"""Pools as the operator writes them."""

from typing import Any

import pytest

from remotegpu_hub.clients import pools
from remotegpu_hub.clients.pools import Binding, Pool
from remotegpu_hub.errors import Invalid


def test_a_list_of_dictionaries_is_read() -> None:
    given = [
        {"name": "a100", "binding": "hami", "node_selector": {"gpu": "a100"}, "shares": {"A100": 4}},
        {"name": "rest"},
    ]
    assert pools.read(given) == [
        Pool("a100", Binding.HAMI, {"gpu": "a100"}, shares={"A100": 4}),
        Pool("rest", Binding.DEVICE_PLUGIN),
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param("a100", "list of dictionaries", id="a word"),
        pytest.param(["a100"], "list of dictionaries", id="a list of words"),
        pytest.param([{}], "needs a name", id="no name"),
        pytest.param([{"name": "x" * 65}], "at most 64", id="a long name"),
        pytest.param([{"name": "a", "selector": {}}], "has no selector", id="an unknown key"),
        pytest.param([{"name": "a", "binding": "magic"}], "not a binding", id="an unknown binding"),
        pytest.param([{"name": "a", "node_selector": {"gpu": 1}}], "dictionary of texts", id="a number as a label"),
        pytest.param([{"name": "a", "labels": ["x"]}], "dictionary of texts", id="labels in a list"),
        pytest.param([{"name": "a", "tolerations": ["x"]}], "as Kubernetes writes them", id="a toleration in a word"),
        pytest.param([{"name": "a", "shares": {"A100": 1}}], "from 2 on", id="one share"),
        pytest.param(
            [{"name": "a", "shares": {"A100": 2}}], "device-plugin gives whole devices", id="shares of a plugin"
        ),
        pytest.param([{"name": "a", "binding": "dra", "shares": {"A100": 2}}], "dra gives", id="shares by DRA"),
        pytest.param([{"name": "a"}, {"name": "a"}], "same name", id="twice the same"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(given: Any, told: str) -> None:
    with pytest.raises(Invalid) as refused:
        pools.read(given)
    assert told in str(refused.value)


def test_of_shares_that_hami_gives_a_run_can_hold_one() -> None:
    hami, by_convention = (
        Pool("hami", Binding.HAMI, shares={"A100": 4, "H100": 2}),
        Pool("loose", Binding.VISIBLE_DEVICES, shares={"L4": 2}),
    )
    assert pools.single_models([hami, by_convention, Pool("rest")]) == {"A100/4", "H100/2"}


def test_a_node_belongs_to_the_first_pool_whose_labels_it_wears() -> None:
    first, second = (
        Pool("first", node_selector={"gpu": "a100", "zone": "a"}),
        Pool("second", node_selector={"gpu": "a100"}),
    )
    assert pools.of([first, second], {"gpu": "a100", "zone": "a", "more": "x"}) is first
    assert pools.of([first, second], {"gpu": "a100", "zone": "b"}) is second
    assert pools.of([first, second], {}) is None
    assert pools.of([first, Pool("rest")], {}) == Pool("rest")
