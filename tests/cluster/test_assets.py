"""Which Kubernetes the tests start, by what KUBEBUILDER_ASSETS names."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.cluster import HERE, has_kubernetes

OURS = Path.home() / ".cache/remotegpu-test-cluster"
ALL = {"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with our own build in its cache."""
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    if os.geteuid() != 0 or not has_kubernetes():
        pytest.skip("NO KUBERNETES of our own, so nothing is shown about what is taken of it")
    cache = tmp_path / ".cache/remotegpu-test-cluster"
    cache.mkdir(parents=True)
    for name in ("k8s-1.20.2", "openssh"):
        (cache / name).symlink_to(OURS / name)
    return tmp_path


def given(home: Path, version: str, *names: str) -> Path:
    """A folder of binaries that say their version."""
    folder = home / "given"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho Kubernetes v{version}\n")
        (folder / name).chmod(0o755)
    return folder


def taken(home: Path, assets: Path | None) -> tuple[Path, dict[str, Path]]:
    """What `assets.sh` chooses: its folder, and where each binary in it really is."""
    environment = {**os.environ, "HOME": str(home), **({"KUBEBUILDER_ASSETS": str(assets)} if assets else {})}
    told = subprocess.run([HERE / "assets.sh"], env=environment, check=True, capture_output=True, text=True, timeout=60)
    folder = Path(told.stdout.strip())
    return folder, {path.name: path.resolve().parent for path in folder.iterdir()}


def test_without_any_named_it_is_our_own_build(home: Path) -> None:
    assert taken(home, None)[1] == dict.fromkeys(ALL, OURS / "k8s-1.20.2")


def test_a_whole_folder_is_taken_as_it_is(home: Path) -> None:
    folder = given(home, "1.36.0", *ALL)
    assert taken(home, folder)[0] == folder


@pytest.mark.parametrize(("version", "rest"), [("1.20.15", ALL), ("1.21.4", ALL), ("1.31.0", set())])
def test_what_envtest_ships_is_completed_where_its_version_allows_and_never_written_to(
    home: Path, version: str, rest: set[str]
) -> None:
    folder = given(home, version, "kube-apiserver", "etcd", "kubectl")
    before = {path: path.read_text() for path in folder.iterdir()}
    chosen, there = taken(home, folder)
    assert there == {**dict.fromkeys(rest, OURS / "k8s-1.20.2"), "kube-apiserver": folder, "etcd": folder}
    assert chosen.is_relative_to(home / ".cache")
    assert {path: path.read_text() for path in folder.iterdir()} == before


def test_a_folder_without_an_api_server_is_told(home: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as told:
        taken(home, given(home, "1.31.0", "etcd"))
    assert "there is no kube-apiserver in it" in told.value.stderr
