"""The set-up and the audit as somebody meets them on a machine that lacks something."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import audit  # noqa: E402
import install  # noqa: E402
import setup  # noqa: E402


def run_setup(path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOLS / "setup.py"), "demo"], env={"PATH": path}, capture_output=True, text=True
    )


def fake_program(folder: Path, name: str, says: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho {says}\n")
    program.chmod(0o755)


def test_without_node_there_is_one_sentence(tmp_path: Path):
    done = run_setup(str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert (
        done.stderr.strip() == "Node.js 20 or newer is needed for JupyterHub's proxy; there is no `node` here. "
        "Install it: nodejs.org."
    )


def test_an_old_node_is_named_in_one_sentence(tmp_path: Path):
    fake_program(tmp_path, "node", "v18.20.4")
    done = run_setup(str(tmp_path))
    assert done.returncode == 1
    assert "this is v18.20.4" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_node_without_npm_is_told(tmp_path: Path):
    fake_program(tmp_path, "node", "v22.1.0")
    assert "npm is needed" in run_setup(str(tmp_path)).stderr


def test_an_old_python_without_a_newer_one_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (99, 0))
    sentence = setup.complain()
    assert sentence.startswith("Python 99.0 or newer is needed; this is 3.")
    assert "\n" not in sentence


def test_a_newer_python_beside_an_old_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_program(tmp_path, "python3.12", "99 1")
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (99, 0))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert setup.find_python() == "python3.12"


def test_an_old_python_can_read_the_first_file():
    ast.parse((TOOLS / "setup.py").read_text(), feature_version=(3, 4))


@pytest.mark.skipif("test" not in install.installed(), reason="`make test` has not set this checkout up")
def test_the_second_set_up_does_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(install, "run", lambda *_, **__: pytest.fail("something was installed"))
    assert install.main(["demo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("set-up: done in ")


def test_what_a_failed_step_said_is_shown_before_its_sentence(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(install.Trouble, match="It did not work"):
        install.run(["sh", "-c", "echo why; exit 3"], failed="It did not work.")
    assert "why" in capsys.readouterr().err


def test_the_lock_file_names_no_registry():
    lock = (TOOLS / "proxy" / "package-lock.json").read_text()
    assert '"resolved"' not in lock


@pytest.mark.parametrize(
    ("answers", "code", "wanted"),
    [
        ([{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, {"vulnerabilities": {}}], 0, "0 known"),
        ([{"dependencies": [{"name": "a", "skip_reason": "offline"}]}, {"vulnerabilities": {}}], 0, "DID NOT RUN"),
        ([{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, {"message": "405"}], 0, "DID NOT RUN"),
        (
            [
                {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]},
                {"vulnerabilities": {}},
            ],
            1,
            "a 1: CVE-1, fixed in ['2']",
        ),
        (
            [{"dependencies": []}, {"vulnerabilities": {"b": {"severity": "high", "range": "<2"}}}],
            1,
            "b: high, <2",
        ),
    ],
    ids=["clean", "python unknown", "npm refused", "python hole", "npm hole"],
)
def test_an_audit_says_what_it_found_or_that_it_did_not_run(
    answers: list[dict[str, Any]],
    code: int,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    given = iter(answers)
    monkeypatch.setattr(audit, "answer", lambda *_: next(given))
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    assert audit.main() == code
    assert wanted in capsys.readouterr().out
    given = iter(answers)
    monkeypatch.setattr(sys, "argv", ["audit.py", "--advise"])
    assert audit.main() == 0


def test_an_audit_that_answers_nonsense_did_not_run(tmp_path: Path):
    with pytest.raises(audit.NotRun, match="no network"):
        audit.answer(["sh", "-c", "echo no network >&2"], tmp_path)
    with pytest.raises(audit.NotRun):
        audit.answer(["/nonexistent"], tmp_path)
