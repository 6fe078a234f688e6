"""Bars of quotas: when their colour warns, and the two marks at which it changes."""

import re

import pytest

from remotegpu_hub.services.pages import FOLDER, View, bar
from remotegpu_hub.units import UNLIMITED


@pytest.mark.parametrize(
    ("held", "limit", "level"),
    [
        (0, 0, ""), (0, 100, ""), (79, 100, ""), (799, 1000, ""), (80, 100, "warm"), (89, 100, "warm"), (90, 100, "near"),
        (99, 100, "near"), (100, 100, "over"), (150, 100, "over"), (1, 0, "over"), (10**9, UNLIMITED, ""),
    ],
)  # fmt: skip
def test_a_bar_warns_from_80_and_from_90_percent_and_when_it_is_full(held: int, limit: int, level: str):
    assert bar(View("en"), "Cores", "environments", held, limit).level == level


@pytest.mark.parametrize("template", ["environments.html", "limits.html", "space_parts.html"])
def test_a_bar_has_a_mark_at_80_and_one_at_90_percent(template: str):
    text = (FOLDER / "templates" / template).read_text()
    bars = re.findall(r'<svg class="rg-bar {{ bar\.level }}".*?</svg>', text)
    assert bars
    for one in bars:
        assert re.findall(r'<line x1="(\d+)%" x2="(\d+)%" y2="100%"/>', one) == [("80", "80"), ("90", "90")]
