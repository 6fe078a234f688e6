"""The benchmarks run and print what they are for. Their times are never asserted: they depend on the machine. Starting
hubs and servers as they do, they run with the full counts of `make prove`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import postgres as pg
from .cluster.cluster import LocalCluster

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
NUMBER = r"[+-]?\d+(?:\.\d+)?"


def run(name: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), "--quick"], capture_output=True, text=True, timeout=300, cwd=FOLDER,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.prove
def test_admission_compares_us_with_bare_drivers_on_both_databases(postgres: pg.Postgres):
    said = run("admission.py")
    rows = re.findall(rf"^ +\d+ +\d+ +(?:{NUMBER}/s .*?ms ?)+ +({NUMBER})", said, re.MULTILINE)
    assert len(rows) == 4, said
    assert all(float(ratio) > 0 for ratio in rows)
    for sentence in ("floor 300/s", "of bare psycopg", "cost at 40 hosts", "longest write lock, at most 20 ms"):
        assert re.search(rf"{sentence}.*(pass|FAIL)", said), said


@pytest.mark.prove
def test_spawn_compares_us_with_the_plain_spawner():
    said = run("spawn.py")
    for pattern in (
        rf"paired median difference {NUMBER} %, 95 % interval {NUMBER} to {NUMBER} %",
        rf"admission .*: median {NUMBER} ms",
        rf"in frames of our code: longest {NUMBER} ms .*(pass|FAIL)",
        rf"everything on the loop, plain: longest {NUMBER} ms of CPU, total {NUMBER} ms; by the clock",
        rf"ours: .*{NUMBER} MiB per 1,000 running and idle",
    ):
        assert re.search(pattern, said), said


@pytest.mark.prove
def test_following_a_large_cluster_is_measured(test_cluster: LocalCluster):
    said = run("kube_scale.py", REMOTEGPU_TEST_CLUSTER=str(test_cluster.state))
    for pattern in (
        "20 nodes with 160 GPUs", rf"known after {NUMBER} s, all written to SQLite after {NUMBER} s",
        rf"{NUMBER} MiB for what is remembered", rf"nothing changed: {NUMBER} s", rf"cordon is known after {NUMBER} ms",
    ):  # fmt: skip
        assert re.search(pattern, said), said


@pytest.mark.prove
def test_many_starts_on_a_large_cluster_are_measured(test_cluster: LocalCluster):
    said = run("kube_load.py", REMOTEGPU_TEST_CLUSTER=str(test_cluster.state))
    for pattern in (
        r"ours\n", r"plain\n", r"all 30 placed, none twice", rf"10 starts at once beside 20 that run: all after {NUMBER} s",
        rf"in frames of our code: longest {NUMBER} ms", rf"memory of the hub's process {NUMBER} MiB",
        rf"users can log in after {NUMBER} s; 30 environments known",
    ):  # fmt: skip
        assert re.search(pattern, said), said


@pytest.mark.prove
def test_pages_are_read_by_many_while_everything_of_theirs_runs(postgres: pg.Postgres):
    said = run("pages_load.py")
    for pattern in (
        "40 environments of 10 users", "10 users logged in", rf"my environments +30 .* {NUMBER} ms +0 ",
        rf"the hub's home +20 .* {NUMBER} ms +0 ", rf"limit 300 ms for p95: {NUMBER} ms, .*(pass|FAIL)", "no error: 0: pass",
        rf"memory of the service .*{NUMBER} ×: (pass|FAIL)", rf"cores taken for my environments: service {NUMBER}, ",
        "afterwards 40 environments run: pass",
    ):  # fmt: skip
        assert re.search(pattern, said), said


@pytest.mark.prove
def test_every_list_is_read_on_few_and_on_many_rows_of_both_databases(postgres: pg.Postgres):
    said = run("long_lists.py")
    assert len(re.findall(rf"{NUMBER} ms +{NUMBER} × +{NUMBER} ms +{NUMBER} × +\d+  all-environments", said)) == 64, (
        said
    )
    assert len(re.findall(r"lists without a search: slowest .*(?:pass|FAIL)", said)) == 2, said


@pytest.mark.prove
@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("[a-z]*.py")))
def test_every_benchmark_says_what_it_measures(file: str):
    helped = subprocess.run([sys.executable, str(FOLDER / file), "--help"], capture_output=True, text=True)
    assert "--quick" in helped.stdout
