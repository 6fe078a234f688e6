import re
import string
from datetime import UTC, datetime

import pytest

from remotegpu_hub import words
from remotegpu_hub.domain import budgets, environments, inventory, workspaces
from remotegpu_hub.errors import (
    Breach,
    BudgetExceeded,
    HostReason,
    IllegalMove,
    Invalid,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from remotegpu_hub.hub import form as page
from remotegpu_hub.orm import EndReason, EnvironmentState, Role
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces.environment_page import reasons, states
from remotegpu_hub.units import GIB, MICROS

from . import sentences

GPU_HOUR = 3_600_000


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize(
    ("header", "chosen", "expected"),
    [
        pytest.param(None, None, "en", id="nothing said"),
        pytest.param("zh-CN,zh;q=0.9,en;q=0.8", None, "zh", id="chinese first"),
        pytest.param("en-US,en;q=0.9,zh;q=0.8", None, "en", id="english first"),
        pytest.param("de,fr;q=0.9,zh-Hans;q=0.1", None, "zh", id="the only one we have"),
        pytest.param("en;q=0.2, zh_TW;q=0.7", None, "zh", id="weights decide"),
        pytest.param("en;q=0", None, "en", id="nothing is left"),
        pytest.param("zh;q=nan, ;;=,\x00", None, "en", id="not a header"),
        pytest.param("en", "zh", "zh", id="chosen wins"),
        pytest.param("zh", "en-GB", "en", id="chosen with a region"),
        pytest.param("zh", "<script>", "zh", id="an unknown choice is ignored"),
    ],
)
def test_the_language_is_the_chosen_one_else_the_best_of_the_header(header, chosen, expected):
    assert words.language(header, chosen) == expected


SAID = [*sentences.of_source(), *sentences.of_templates()]
TERMS = [
    budgets.SPENT,
    inventory.DRAINED,
    workspaces.MAY_NOT_START,
    *page.SERVICES.values(),
    *page.CATEGORIES.values(),
    *(role.value for role in Role),
    *(state.value for state in environments.EnvironmentState),
    "online",
    "offline",
    "maintenance",
]


def test_every_sentence_of_the_source_has_a_chinese_translation():
    names = {*page.SERVICES.values()} & {"SSH", "Jupyter", "VS Code", "TensorBoard"}
    known = words._catalogue()
    missing = [(where, text) for where, text in SAID if text not in known]
    missing += [("term", text) for text in TERMS if text not in known and text not in names]
    assert not missing


def test_the_scan_finds_sentences_of_errors_of_the_form_and_of_templates():
    found = {text for _, text in SAID}
    assert "This would go over a limit." in found
    assert "{key} must be text of at most {limit} characters." in found
    assert "The budget of {workspace} would last until {moment} at what runs now plus this." in found
    assert "The user {name}" in found


@pytest.mark.parametrize(("english", "chinese"), words._catalogue().items())
def test_a_translation_has_the_placeholders_of_its_sentence(english, chinese):
    assert placeholders(english) == placeholders(chinese)
    assert not re.search(r"<[a-z/]", chinese)


def test_an_unknown_sentence_stays_english_and_a_missing_fact_shows_its_name():
    assert words.translate("zh", "Nobody has translated {this}.", this=None) == "Nobody has translated ."
    assert words.translate("en", "{key} is odd.") == "{key} is odd."
    assert words.translate("en", "{value}", value="{evil} {0}") == "{evil} {0}"


def test_a_refusal_names_every_limit_whose_it_is_and_what_to_do():
    error = QuotaExceeded(
        (
            Breach("workspace", "vision-lab", "gpus", 2000, 7000, 8000),
            Breach("user", "alice", "memory", 128 * GIB, 200 * GIB, 256 * GIB),
            Breach("member", "vision-lab", "gpu:A100-80GB", 2, 1, 2),
            Breach("user", "alice", "cpu", 500, 1000, 1000),
            Breach("user", "alice", "environments", 1, 3, 3),
            Breach("workspace", "vision-lab", "gpu_hours", GPU_HOUR, 401 * GPU_HOUR + GPU_HOUR // 2, 400 * GPU_HOUR),
        )
    )
    assert words.explain(error, "en") == [
        "This would go over a limit.",
        "vision-lab may hold 8 GPUs: 7 are held, 2 were asked for",
        "You may hold 256 GiB: 200 GiB are held, 128 GiB were asked for",
        "In vision-lab you may hold 2 × A100-80GB: 1 is held, 2 were asked for",
        "You may hold 1 core: 1 is held, 0.5 were asked for",
        "You may hold 3 environments: 3 are held, 1 was asked for",
        "vision-lab may use 400 GPU hours a month: 401.5 are used",
        "Stop an environment, choose less, or ask the owner of vision-lab for more.",
    ]
    assert words.explain(error, "zh")[1] == "工作区 vision-lab 最多可占用 8 块 GPU：已占用 7，本次申请 2"


def test_own_limits_are_raised_by_the_hub_not_by_an_owner():
    error = QuotaExceeded((Breach("user", "alice", "gpus", 1000, 0, 0),))
    assert words.explain(error, "en")[-1] == "Stop an environment, choose less, or ask an admin of the hub for more."


def test_no_capacity_explains_each_host():
    error = NoCapacity(
        (
            HostReason("host-3", "gpu:A100-80GB", 2, 4),
            HostReason("host-4", "cpu", 3500, 16000),
            HostReason("host-5", "memory", 12 * GIB, 64 * GIB),
            HostReason("host-6", "status", 0, 0, "maintenance"),
        ),
        wanted="4 × A100-80GB",
        more=7,
    )
    assert words.explain(error, "en") == [
        "No host has room for 4 × A100-80GB now.",
        "host-3: 2 of 4 A100-80GB free",
        "host-4: 3.5 of 16 cores free",
        "host-5: 12 GiB of 64 GiB free",
        "host-6: maintenance",
        "and 7 more hosts without room",
        "Choose less or another GPU, or wait until somebody stops.",
    ]
    assert words.explain(error, "zh")[4] == "host-6: 维护中"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(NotFound("The workspace vision-lab"), ["未找到工作区 vision-lab。"], id="a term with a name"),
        pytest.param(
            NotFound("The user Ada L <b>"), ["未找到用户 Ada L <b>。"], id="a term with a name of several words"
        ),
        pytest.param(NotFound("The image"), ["未找到镜像。"], id="a term"),
        pytest.param(NotFound("Something else"), ["未找到Something else。"], id="not a term"),
        pytest.param(
            IllegalMove("The environment", "stopped", "running"), ["环境不能从“已停止”变为“运行中”。"], id="states"
        ),
        pytest.param(
            Unavailable("The database does not answer. Nothing was changed; try again in a minute."),
            ["数据库没有响应。未做任何更改，请一分钟后重试。"],
            id="says what to do itself",
        ),
        pytest.param(
            BudgetExceeded(
                "The budget of {workspace} for {month} is spent. Ask a hub admin to raise it.",
                workspace="nlp",
                month="2026-11",
            ),
            [
                "工作区 nlp 在 2026-11 的预算已用完。请联系集线器管理员提高预算。",
                "在此之前请选择其他工作区，或等到下个月。",
            ],
            id="budget",
        ),
    ],
)
def test_errors_are_explained_in_chinese(error, expected):
    assert words.explain(error, "zh") == expected


def test_explaining_as_html_escapes_every_fact():
    evil = "<script>alert(1)</script>\"'"
    errors = [
        Invalid("{value} is not a size: write a number with K, M, G or T, such as 16G.", value=evil),
        NotFound(evil),
        QuotaExceeded((Breach("workspace", evil, "gpu:" + evil, 2, 1, 2),)),
        NoCapacity((HostReason(evil, "gpu:" + evil, 0, 1), HostReason(evil, "status", 0, 0, evil)), wanted=evil),
    ]
    for error in errors:
        for language in ("en", "zh"):
            html = words.explain_html(error, language)
            assert "<script" not in html
            assert "&lt;script&gt;" in html
            assert '"' not in html.replace('class="', "").replace('">', "")


@pytest.mark.parametrize(
    ("micros", "currency", "language", "expected"),
    [
        pytest.param(22_360_000, "CNY", "en", "¥22.36", id="yuan in english"),
        pytest.param(22_360_000, "CNY", "zh", "¥22.36", id="yuan in chinese"),
        pytest.param(9_500_000, "CNY", "en", "¥9.50", id="at least the digits of the currency"),
        pytest.param(12_500, "USD", "en", "$0.0125", id="a small price in full"),
        pytest.param(12_345, "USD", "en", "$0.0123", id="at most four digits"),
        pytest.param(99, "USD", "en", "<$0.0001", id="too small to show is not nothing"),
        pytest.param(0, "CNY", "en", "¥0.00", id="nothing"),
        pytest.param(1_234_567_890_000, "EUR", "en", "€1,234,567.89", id="thousands"),
        pytest.param(120 * MICROS, "JPY", "en", "¥120", id="a currency without digits"),
        pytest.param(-5 * MICROS, "CNY", "en", "-¥5.00", id="a credit"),
        pytest.param(7 * MICROS, "XTS", "en", "XTS\u00a07.00", id="a currency without a sign"),
        pytest.param((2**63 - 1), "CNY", "en", "¥9,223,372,036,854.7758", id="no float in between"),
    ],
)
def test_money_is_written_as_people_write_it(micros, currency, language, expected):
    assert words.money(micros, currency, language) == expected


@pytest.mark.parametrize(
    ("micros", "currency", "expected"),
    [
        pytest.param(2_060_990_000, "CNY", "¥2,060", id="cut from a hundred on"),
        pytest.param(99_990_000, "CNY", "¥99.99", id="below a hundred"),
        pytest.param(12_500, "CNY", "¥0.01", id="small"),
        pytest.param(900, "CNY", "<¥0.01", id="smaller than the smallest coin"),
        pytest.param(900, "JPY", "<¥1", id="a currency without digits"),
        pytest.param(0, "CNY", "¥0.00", id="nothing"),
    ],
)
def test_totals_are_written_short(micros, currency, expected):
    assert words.money(micros, currency, "en", short=True) == expected


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0, "0 s", "0 秒"),
        (59, "59 s", "59 秒"),
        (60, "1 min", "1 分钟"),
        (7500, "2 h 5 min", "2 小时 5 分钟"),
        (3600, "1 h", "1 小时"),
        (3 * 86400 + 4 * 3600 + 300, "3 d 4 h", "3 天 4 小时"),
    ],
)
def test_durations_are_told_in_two_units(seconds, english, chinese):
    assert words.duration(seconds, "en") == english
    assert words.duration(seconds, "zh") == chinese


def test_moments_carry_their_zone():
    value = datetime(2026, 11, 27, 17, 30, 11, tzinfo=UTC)
    assert words.moment(value, "Asia/Shanghai", "en") == "Sat 28 Nov 2026, 01:30 Asia/Shanghai"
    assert words.moment(value, "Asia/Shanghai", "zh") == "2026年11月28日 周六 01:30 Asia/Shanghai"
    assert words.clock(value, "America/New_York") == "12:30:11 America/New_York"


def test_every_end_of_a_run_has_its_words_on_the_page():
    for language in ("en", "zh"):
        assert set(reasons(View(language))) == set(EndReason)
        assert set(states(View(language))) == set(EnvironmentState)
