"""What local runs print, in files of their own."""

import os
from pathlib import Path

import pytest

from remotegpu_hub.clients import outputs


def test_only_old_and_overgrown_files_of_runs_are_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outputs, "LARGEST_BYTES", 10)
    for name in ("1.log", "2.log", "3.log", "hub.log"):
        (tmp_path / name).write_text("x" * (20 if name in ("3.log", "hub.log") else 5))
    for name in ("1.log", "2.log"):
        os.utime(tmp_path / name, (0, 0))
    monkeypatch.chdir(tmp_path)
    outputs.tidy("", running=[])
    assert len(list(tmp_path.iterdir())) == 4
    outputs.tidy(str(tmp_path), running=[2])
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"2.log": 5, "3.log": 0, "hub.log": 20}
