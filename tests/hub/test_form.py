import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remotegpu_hub import choices
from remotegpu_hub.domain.environments import (
    Choice,
    FlavorOffer,
    GpuOffer,
    ImageOffer,
    LimitBar,
    Offers,
    PriceLine,
    Quote,
    WorkspaceOffer,
)
from remotegpu_hub.errors import Breach, Conflict, Denied, Invalid, NotFound, QuotaExceeded, RemoteGPUError
from remotegpu_hub.hub import form
from remotegpu_hub.units import GIB, MICROS, UNLIMITED

NOW = datetime(2026, 11, 23, 6, 2, 11, tzinfo=UTC)
EVIL = "<script>alert(1)</script>\"'&{x}{{ 7*7 }}"
LONG = "深度学习视觉研究与多模态大模型联合训练平台" * 3


def sample(**changed) -> Offers:
    offers = Offers(
        now=NOW,
        time_zone="Asia/Shanghai",
        currency="CNY",
        user="alice",
        server_name="",
        choice=Choice("vision-lab", "local:pytorch", None, "A100-80GB", 2, 16000, 128 * GIB, ("ssh",), "sweep"),
        workspaces=(
            WorkspaceOffer("vision-lab", "Vision Lab", "member", 6000, 2940 * MICROS),
            WorkspaceOffer("nlp", "NLP", "viewer", 0, None, Denied("Look only.")),
            WorkspaceOffer("~alice", "alice", "owner", UNLIMITED, None),
        ),
        images=(
            ImageOffer("local:pytorch", "PyTorch 2.9", "official", "PyTorch", "3.12", "12.8", 7 * GIB),
            ImageOffer("local:tf", "TensorFlow", "official", None, None, None, None, True, Conflict("Driver too old.")),
        ),
        flavors=(
            FlavorOffer("a100", "One A100", "A100-80GB", 1, 8000, 64 * GIB, 11_180_000),
            FlavorOffer("cpu", "CPU only", None, 0, 500, GIB // 2, None, Conflict("Not now.")),
        ),
        gpus=(
            GpuOffer("A100-80GB", 81920, 1000, 5, 16, 3, 9_500_000, True),
            GpuOffer("H200/4", 36000, 250, 0, 8, 0, None, False, Conflict("All 8 are held.")),
        ),
        port_services=("ssh", "tensorboard"),
        quote=Quote(
            22_360_000,
            (PriceLine("gpu:A100-80GB", 2, 19 * MICROS), PriceLine("cpu", 16000, 1_600_000)),
            (
                LimitBar("user", "alice", "gpus", 0, 2000, 4000),
                LimitBar("workspace", "vision-lab", "memory", 64 * GIB, 128 * GIB, 256 * GIB),
                LimitBar("member", "vision-lab", "gpu:A100-80GB", 1, 2, 2),
                LimitBar("budget", "vision-lab", "money", 2060 * MICROS, 0, 5000 * MICROS),
            ),
            NOW + timedelta(days=4, hours=11, minutes=28),
            False,
            "gpu-07",
            2,
            None,
        ),
    )
    return replace(offers, **changed)


class Page(HTMLParser):
    """Tags with their attributes, and the text as people see it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def fields(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if attrs.get("name") == name]

    def field(self, name: str, value: str) -> dict[str, str | None]:
        return next(attrs for attrs in self.fields(name) if attrs.get("value") == value)


def test_the_page_shows_the_price_its_parts_the_budget_the_limits_and_the_host():
    text = Page(form.render(sample(), "en")).text
    for part in (
        "¥22.36 an hour",
        "2 × A100-80GB",
        "16 cores",
        "The budget of Vision Lab would last until Sat 28 Nov 2026, 01:30 Asia/Shanghai",
        "Your GPUs 0 → 2 of 4",
        "vision-lab: memory 64 → 192 of 256 GiB",
        "over the limit: 1 → 3 of 2",
        "¥2,060 of ¥5,000",
        "Fits on 2 hosts now; would run on gpu-07.",
        "CPU and memory are counted, not enforced.",
        "5 of 16 free, on 3 hosts",
        "a share: 0.25 of a GPU",
        "The numbers are of 14:02:11 Asia/Shanghai",
        "Vision Lab: 6 GPUs left to you, ¥2,940 left this month",
        "alice: no GPU limit",
    ):
        assert part in text


def test_the_page_speaks_chinese():
    html = form.render(sample(), "zh")
    assert 'lang="zh-CN"' in html
    text = Page(html).text
    assert "启动环境" in text
    assert "目前有 2 台主机可用" in text
    assert "Start" not in text


def test_the_current_choice_is_filled_in():
    page = Page(form.render(sample(), "en"))
    assert "checked" in page.field("image", "local:pytorch")
    assert "checked" in page.field("gpu_model", "A100-80GB")
    assert "checked" in page.field("flavor", "")
    assert "checked" in page.field("ports", "ssh")
    assert "checked" not in page.field("ports", "tensorboard")
    assert page.fields("gpus")[0]["value"] == "2"
    assert page.fields("cpu")[0]["value"] == "16"
    assert page.fields("memory_gib")[0]["value"] == "128"
    assert page.fields("name")[0]["value"] == "sweep"


def test_what_cannot_start_is_there_disabled_with_its_reason():
    page = Page(form.render(sample(), "en"))
    for name, value, reason in (
        ("image", "local:tf", "Driver too old."),
        ("flavor", "cpu", "Not now."),
        ("gpu_model", "H200/4", "All 8 are held."),
    ):
        assert "disabled" in page.field(name, value)
        assert reason in page.text
    nlp = next(attrs for tag, attrs in page.tags if tag == "option" and attrs["value"] == "nlp")
    assert "disabled" in nlp
    assert "NLP: Look only." in page.text


def test_a_chosen_thing_that_cannot_start_stays_chosen_and_is_sent():
    chosen = replace(sample().choice, image="local:tf", gpu_model="H200/4")
    page = Page(form.render(sample(choice=chosen), "en"))
    for name, value in (("image", "local:tf"), ("gpu_model", "H200/4")):
        assert "checked" in page.field(name, value)
        assert "disabled" not in page.field(name, value)


def test_a_refusal_is_explained_in_the_quote_and_told_to_screen_readers():
    refusal = QuotaExceeded((Breach("workspace", "vision-lab", "gpus", 2000, 7000, 8000),))
    html = form.render(sample(quote=replace(sample().quote, refusal=refusal)), "en")
    page = Page(html)
    assert "Cannot start now: This would go over a limit. vision-lab may hold 8 GPUs: 7 are held" in page.text
    quoted = next(attrs for _, attrs in page.tags if attrs.get("id") == "rg-quote")
    assert "data-rg-refused" in quoted
    assert quoted["data-rg-say"].startswith("¥22.36 an hour. Cannot start now: vision-lab may hold 8 GPUs")


def test_the_page_says_what_is_simulated_and_what_is_not_isolated():
    text = Page(form.render(sample(simulated=True, insecure_demo=True, enforced=True), "en")).text
    assert "Demo, no isolation" in text
    assert "simulated" in text
    assert "not enforced" not in text


def test_without_a_workspace_there_is_nothing_to_start():
    page = Page(form.render(sample(workspaces=(), images=(), quote=None, choice=Choice()), "en"))
    assert "You are in no workspace yet." in page.text
    assert not any(tag == "button" for tag, _ in page.tags)


def test_without_an_image_the_page_says_whom_to_ask():
    page = Page(form.render(sample(images=(), flavors=(), quote=None, choice=Choice("vision-lab")), "en"))
    assert "This workspace has no image yet." in page.text
    assert page.field("flavor", "")["type"] == "hidden"


def test_an_error_of_the_last_try_is_shown_once_and_marked():
    html = form.render(sample(), "en", error=Invalid("{key} is odd.", key=EVIL))
    assert "data-rg-error" in html
    assert "<script" not in html
    assert Page(html).text.count("is odd.") == 1


def hostile() -> Offers:
    base = sample()
    reason = Denied("No {who}.", who=EVIL)
    choice = replace(base.choice, workspace=EVIL, image=EVIL, flavor=EVIL, gpu_model=EVIL, name=EVIL)
    quoted = Quote(
        None,
        (PriceLine("gpu:" + EVIL, 1, 5),),
        (LimitBar("workspace", EVIL, "gpu:" + EVIL, 1, 2, 2),),
        NOW,
        False,
        EVIL,
        1,
        QuotaExceeded((Breach("workspace", EVIL, "gpu:" + EVIL, 2, 1, 2),)),
    )
    return sample(
        user=EVIL,
        server_name=EVIL,
        choice=choice,
        workspaces=(WorkspaceOffer(EVIL, EVIL, EVIL, 1000, 5, reason),),
        images=(ImageOffer(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, 5, True, reason),),
        flavors=(FlavorOffer(EVIL, EVIL, EVIL, 1, 1000, GIB, None, reason),),
        gpus=(GpuOffer(EVIL, 1024, 500, 1, 2, 1, None, True, reason),),
        port_services=(EVIL,),
        quote=quoted,
        problems=(NotFound(EVIL),),
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_script_in_every_text_stays_text(language):
    html = form.render(hostile(), language)
    page = Page(html)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.fields("name")[0]["value"] == EVIL
    assert page.fields("image")[0]["value"] == EVIL
    assert "49" not in page.text


def test_a_long_name_in_any_script_is_kept_whole():
    page = Page(form.render(sample(choice=replace(sample().choice, name=LONG)), "zh"))
    assert page.fields("name")[0]["value"] == LONG


def test_what_the_page_renews_is_marked_and_ids_are_unique():
    page = Page(form.render(sample(), "en"))
    live = {attrs["id"] for _, attrs in page.tags if "data-live" in attrs}
    assert {"rg-clock", "rg-images", "rg-gpus", "rg-flavors", "rg-quote", "rg-workspaces"} <= live
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = {attrs["for"] for tag, attrs in page.tags if tag == "label" and "for" in attrs}
    assert labels <= set(ids)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, Choice(), id="nothing said"),
        pytest.param({"workspace": None, "gpus": None}, Choice(), id="null is not said"),
        pytest.param({"workspace": "vision-lab"}, Choice(workspace="vision-lab"), id="workspace"),
        pytest.param({"flavor": ""}, Choice(flavor=""), id="own numbers"),
        pytest.param({"gpu_model": ""}, Choice(gpu_model=""), id="no gpu"),
        pytest.param({"gpu_model": "A100", "gpus": 2}, Choice(gpu_model="A100", gpus=2), id="gpus"),
        pytest.param({"cpu": 4}, Choice(cpu_millis=4000), id="whole cores"),
        pytest.param({"cpu": 0.5}, Choice(cpu_millis=500), id="half a core"),
        pytest.param({"cpu": "500m"}, Choice(cpu_millis=500), id="cores as text"),
        pytest.param({"memory": "1.5 TiB"}, Choice(memory_bytes=1536 * GIB), id="memory"),
        pytest.param({"ports": []}, Choice(ports=()), id="no ports"),
        pytest.param({"ports": ["ssh", "ssh", "vscode"]}, Choice(ports=("ssh", "vscode")), id="ports once each"),
        pytest.param({"name": "  深度 学习 \u3000実験 "}, Choice(name="深度 学习 実験"), id="a name in any script"),
        pytest.param({"name": ""}, Choice(), id="an empty name is not said"),
    ],
)
def test_options_are_read(options, expected):
    assert choices.parse(options) == expected


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"cmd": "rm -rf /"}, id="unknown key"),
        pytest.param({"_xsrf": "2|abc"}, id="the form's token is no option"),
        pytest.param({EVIL: 1}, id="hostile key"),
        pytest.param({1: 1}, id="key that is no text"),
        pytest.param({"workspace": 7}, id="number for text"),
        pytest.param({"workspace": ["vision-lab"]}, id="list for text"),
        pytest.param({"workspace": "x" * 65}, id="over-long text"),
        pytest.param({"image": "a\0b"}, id="NUL"),
        pytest.param({"name": "a\nb"}, id="line break"),
        pytest.param({"name": "\u202egnp.exe"}, id="turned writing direction"),
        pytest.param({"name": "\ud800"}, id="half a character"),
        pytest.param({"gpus": True}, id="bool for a count"),
        pytest.param({"gpus": "2"}, id="text for a count"),
        pytest.param({"gpus": 2.0}, id="float for a count"),
        pytest.param({"gpus": -1}, id="negative count"),
        pytest.param({"gpus": 10**5000}, id="huge count"),
        pytest.param({"gpus": 2, "gpu_model": ""}, id="gpus without a model"),
        pytest.param({"gpus": 0, "gpu_model": "A100"}, id="a model without gpus"),
        pytest.param({"cpu": float("nan")}, id="NaN"),
        pytest.param({"cpu": float("inf")}, id="infinity"),
        pytest.param({"cpu": 1e300}, id="huge cores"),
        pytest.param({"cpu": 10**5000}, id="huger cores"),
        pytest.param({"cpu": -1}, id="negative cores"),
        pytest.param({"cpu": 0}, id="no cores"),
        pytest.param({"cpu": 0.00001}, id="finer than a thousandth"),
        pytest.param({"cpu": True}, id="bool for cores"),
        pytest.param({"cpu": "4; ls"}, id="more than cores"),
        pytest.param({"cpu": {"$gt": 0}}, id="nested cores"),
        pytest.param({"memory": 16}, id="memory without a unit as number"),
        pytest.param({"memory": "9" * 400 + "T"}, id="huge memory"),
        pytest.param({"memory": "99999999999999999999T"}, id="too much memory"),
        pytest.param({"memory": "-1G"}, id="negative memory"),
        pytest.param({"memory": "0"}, id="no memory"),
        pytest.param({"memory": "NaN"}, id="memory that is none"),
        pytest.param({"ports": "ssh"}, id="text for a list"),
        pytest.param({"ports": ["telnet"]}, id="unknown port"),
        pytest.param({"ports": [["ssh"]]}, id="nested ports"),
        pytest.param({"ports": ["ssh"] * 100}, id="many ports"),
        pytest.param({"flavor": "a100", "gpus": 8, "gpu_model": "H200"}, id="flavor and own numbers"),
        pytest.param([], id="a list of options"),
        pytest.param("workspace=x", id="text of options"),
        pytest.param(None, id="no options"),
    ],
)
def test_hostile_options_are_refused_in_a_sentence(options):
    with pytest.raises(Invalid) as refused:
        choices.parse(options)
    assert str(refused.value).endswith(".")
    assert "<" not in str(refused.value)
    assert len(str(refused.value)) < 250


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
number_texts = st.text(alphabet="0123456789.,eE+-nNaAiIfFmMgGkKtTbB ٣²½", max_size=40)


@given(st.dictionaries(st.sampled_from(choices.OPTIONS) | st.text(max_size=8), json_values | number_texts, max_size=5))
def test_parsing_anything_gives_a_choice_or_our_error(options):
    try:
        choice = choices.parse(options)
    except RemoteGPUError as error:
        assert str(error)
    else:
        assert choice.gpus is None or 0 <= choice.gpus <= choices.MOST_GPUS
        assert choice.cpu_millis is None or 0 < choice.cpu_millis <= choices.MOST_CPU_MILLIS
        assert choice.memory_bytes is None or 0 < choice.memory_bytes <= choices.MOST_MEMORY_BYTES
        json.dumps(choice.name, ensure_ascii=False).encode()


@given(st.dictionaries(st.sampled_from(choices.FIELDS) | st.text(max_size=8),
                       st.lists(st.text(max_size=60) | number_texts, max_size=3), max_size=6))  # fmt: skip
def test_a_posted_form_gives_options_that_parse_or_our_error(fields):
    try:
        options = choices.parse_form(fields)
    except RemoteGPUError:
        pass
    else:
        choices.parse(json.loads(json.dumps(options)))
    choices.prefill(fields)


@given(st.text(max_size=200) | json_values.map(lambda value: quote(json.dumps(value, default=str))))
def test_a_hostile_header_gives_a_choice_or_nothing(header):
    assert isinstance(choices.prefill_header(header), Choice | None)


POSTED = {
    "_xsrf": ["2|abc"],
    "workspace": ["vision-lab"],
    "image": ["local:pytorch"],
    "name": ["sweep"],
    "flavor": [""],
    "gpu_model": ["A100-80GB"],
    "gpus": ["2"],
    "cpu": ["16"],
    "memory_gib": ["0.5"],
    "ports": ["", "ssh"],
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, Choice("vision-lab", "local:pytorch", "", "A100-80GB", 2, 16000, GIB // 2, ("ssh",), "sweep"),
                     id="own numbers"),
        pytest.param({"flavor": ["a100"]}, Choice("vision-lab", "local:pytorch", "a100", ports=("ssh",), name="sweep"),
                     id="a flavor decides the numbers"),
        pytest.param({"gpu_model": [""], "gpus": ["3"]},
                     Choice("vision-lab", "local:pytorch", "", "", 0, 16000, GIB // 2, ("ssh",), "sweep"),
                     id="no gpu"),
        pytest.param({"name": [""], "cpu": [""], "memory_gib": [" "], "ports": [""]},
                     Choice("vision-lab", "local:pytorch", "", "A100-80GB", 2, ports=()), id="left empty"),
    ],
)  # fmt: skip
def test_a_posted_form_becomes_options(changed, expected):
    posted = {**POSTED, **changed}
    assert choices.parse(choices.parse_form(posted)) == expected
    assert choices.prefill(posted) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"gpus": ["two"]},
        {"gpus": ["2", "3"]},
        {"memory_gib": ["lots"]},
        {"memory_gib": ["1e9"]},
        {"cpu": ["-1"]},
        {"file": ["x"]},
        {"user_options": ["{}"]},
    ],
    ids=str,
)
def test_a_wrong_field_is_refused_before_anything_starts(changed):
    with pytest.raises(Invalid):
        choices.parse_form({**POSTED, **changed})


def test_what_the_page_posts_is_what_the_form_reads():
    """Every field of the rendered form, sent as it stands, reads back as the choice that was rendered."""
    page = Page(form.render(sample(), "en"))
    sent: dict[str, list[str]] = {"workspace": ["vision-lab"]}
    for tag, attrs in page.tags:
        if (
            tag == "input"
            and attrs.get("name")
            and (attrs.get("type") not in ("radio", "checkbox") or "checked" in attrs)
        ):
            sent.setdefault(attrs["name"], []).append(attrs.get("value") or "")
    assert choices.parse(choices.parse_form(sent)) == replace(sample().choice, flavor="")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param({"workspace": ["nlp"], "next": ["//evil"]}, Choice(workspace="nlp"), id="unknown dropped"),
        pytest.param({"opt-workspace": ["nlp"], "opt-gpus": ["x"]}, Choice(workspace="nlp"), id="prefix and nonsense"),
        pytest.param({"gpus": ["2"], "gpu_model": ["A100"]}, Choice(gpu_model="A100", gpus=2), id="gpus"),
        pytest.param({"opt-memory": ["16G"]}, Choice(memory_bytes=16 * GIB), id="memory as in REST"),
        pytest.param({"memory_gib": ["16"]}, Choice(memory_bytes=16 * GIB), id="memory"),
        pytest.param({"name": ["a\0b"], "image": ["i"]}, Choice(image="i"), id="control characters"),
        pytest.param({"workspace": []}, Choice(), id="no value"),
    ],
)
def test_query_arguments_fill_in_what_can_be_read(query, expected):
    assert choices.prefill(query) == expected


def test_the_page_sends_its_choice_along_in_a_header():
    header = quote(json.dumps({"workspace": ["vision-lab"], "name": ["深度"], "gpu_model": [""]}))
    assert choices.prefill_header(header) == Choice(workspace="vision-lab", name="深度", gpu_model="", gpus=0)
    assert choices.prefill_header(None) is None
    assert choices.prefill_header("%7Bbroken") is None
    assert choices.prefill_header("[" * 5000) is None
    assert choices.prefill_header("x" * 10_000) is None
