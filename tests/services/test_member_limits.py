"""Limits of one member in their form: read and shown to the last unit."""

import pytest

from remotegpu_hub.errors import Invalid
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import member_pages
from remotegpu_hub.units import GIB


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gpu_millis", "1e999999"), ("gpu_millis", "0.0001"), ("gpu_millis", "-1"), ("gpu_millis", "NaN"),
        ("gpu_millis", "9" * 18), ("memory_bytes", "many"), ("environments", "1.5"), ("model:A100", "1e3"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_told(name: str, text: str):
    with pytest.raises(Invalid):
        member_pages.read_limit(name, text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gpu_millis", 142), ("memory_bytes", 3 * GIB + 1), ("environments", 7), ("model:A100", 2), ("cpu_millis", None),
     ("gpu_hours", "unlimited")],
)  # fmt: skip
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_the_form_shows_is_read_back_as_it_was(name: str, value: int | str | None, language: str):
    assert member_pages.read_limit(name, member_pages.written(View(language), name, value)) == value
