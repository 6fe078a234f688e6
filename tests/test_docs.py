"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest

from tools import api_page
from tools.settings_page import PAGE, page

ROOT = Path(__file__).resolve().parent.parent


def test_the_api_page_and_its_description_are_made_from_the_routes() -> None:
    assert api_page.PAGE.read_text() == api_page.page(), "run: python tools/api_page.py"
    assert api_page.DESCRIPTION.read_text() == api_page.description(), "run: python tools/api_page.py"


def test_the_settings_page_is_made_from_the_settings() -> None:
    assert PAGE.read_text() == page(), "run: python tools/settings_page.py"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_every_link_of_a_page_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_both_readmes_have_the_same_commands() -> None:
    def commands(name: str) -> list[str]:
        blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / name).read_text().replace("   ", ""), re.DOTALL)
        code = "\n".join(blocks)
        return re.sub(r'(--display-name )"[^"]*"|"(USD|CNY)"', r"\1", code).splitlines()

    assert commands("README.md") == commands("README.zh-CN.md")


def test_both_readmes_have_the_same_sections_and_links() -> None:
    def shape(name: str) -> list[str]:
        text = (ROOT / name).read_text()
        return [line.split(" ")[0] for line in text.splitlines() if line.startswith("#")] + sorted(
            target for target in re.findall(r"\]\((docs/[^)]+\.md|[A-Z]+\.md)\)", text) if "README" not in target
        )

    assert shape("README.md") == shape("README.zh-CN.md")
