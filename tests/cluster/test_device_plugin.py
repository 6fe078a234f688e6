"""The simulated device plugin as a kubelet meets it: a real process, and a kubelet's side of the API on real sockets."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from . import device_plugin
from .device_plugin import API, M, encode

PROGRAM = str(Path(device_plugin.__file__))
SOON = 60
GPU = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Kubelet:
    """Takes registrations on kubelet.sock and calls the plugin back, as the kubelet does."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "device-plugins"
        self.folder.mkdir(exist_ok=True)
        self.registered: list[Any] = []
        self.server: Any = None
        self.channels: list[grpc.Channel] = []

    def start(self, *, empty: bool = True) -> None:
        """Like the kubelet, empty the folder first: plugins lose their sockets."""
        for left in self.folder.iterdir() if empty else ():
            left.unlink()
        methods = {"Register": ("RegisterRequest", self.register)}
        self.server = device_plugin.serve(self.folder / "kubelet.sock", "Registration", methods)

    def stop(self) -> None:
        for channel in self.channels:
            channel.close()
        if self.server:
            self.server.stop(None).wait()
        self.channels, self.server, self.registered = [], None, []

    def register(self, request: Any, context: Any) -> Any:
        self.registered.append(request)
        return M["Empty"]()

    def registration(self, resource: str = "nvidia.com/gpu") -> Any:
        found = until(lambda: [r for r in self.registered if r.resource_name == resource])
        return found[-1]

    def channel(self, resource: str = "nvidia.com/gpu") -> grpc.Channel:
        channel = grpc.insecure_channel(f"unix:{self.folder / self.registration(resource).endpoint}")
        self.channels.append(channel)
        return channel

    def call(self, method: str, request: Any, answer: str, resource: str = "nvidia.com/gpu") -> Any:
        call = self.channel(resource).unary_unary(f"/{API}.DevicePlugin/{method}", encode, M[answer].FromString)
        return call(request, timeout=SOON)

    def watch(self, resource: str = "nvidia.com/gpu") -> Iterator[dict[str, str]]:
        """Each list the plugin sends: the health of each device."""
        call = self.channel(resource).unary_stream(
            f"/{API}.DevicePlugin/ListAndWatch", encode, M["ListAndWatchResponse"].FromString
        )
        for answer in call(M["Empty"](), timeout=SOON):
            yield {device.ID: device.health for device in answer.devices}

    def allocate(self, *containers: list[str]) -> list[dict[str, str]]:
        """The environment of each container."""
        request = M["AllocateRequest"](container_requests=[{"devicesIDs": ids} for ids in containers])
        answer = self.call("Allocate", request, "AllocateResponse")
        return [{env.key: env.value for env in container.envs} for container in answer.container_responses]

    def prefer(self, available: list[str], size: int, must: list[str]) -> list[str]:
        wanted = {"available_deviceIDs": available, "must_include_deviceIDs": must, "allocation_size": size}
        request = M["PreferredAllocationRequest"](container_requests=[wanted])
        answer = self.call("GetPreferredAllocation", request, "PreferredAllocationResponse")
        return list(answer.container_responses[0].deviceIDs)


def until(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + SOON
    while not (found := look()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="dp-") as folder:
        yield Path(folder)


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    kubelet = Kubelet(tmp_path)
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a plugin beside the kubelet's sockets; at the end each stops at SIGTERM."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str, resource: str = "nvidia.com/gpu", count: int = 4) -> subprocess.Popen[str]:
        command = [sys.executable, PROGRAM, "--root", str(tmp_path), "--resource", resource, "--count", str(count)]
        running.append(
            subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.communicate(timeout=SOON)
        finally:
            process.kill()


def test_a_kubelet_is_told_of_every_gpu_by_a_uuid_that_lasts(kubelet: Kubelet, plugin, tmp_path: Path):
    plugin(count=8)
    registration = kubelet.registration()
    assert (registration.version, registration.endpoint) == ("v1beta1", "nvidia.com-gpu.sock")
    assert registration.options == kubelet.call("GetDevicePluginOptions", M["Empty"](), "DevicePluginOptions")
    devices = next(kubelet.watch())
    assert len(devices) == 8
    assert all(GPU.fullmatch(name) for name in devices)
    assert set(devices.values()) == {"Healthy"}
    assert list(devices) == list(device_plugin.Plugin(tmp_path, "nvidia.com/gpu", 8).index_of)


def test_a_container_sees_the_uuids_it_was_given(kubelet: Kubelet, plugin):
    plugin()
    zero, one, two, three = next(kubelet.watch())
    assert kubelet.allocate([two, zero], [three]) == [
        {"NVIDIA_VISIBLE_DEVICES": f"{zero},{two}", "REMOTEGPU_SIMULATED_GPUS": "1"},
        {"NVIDIA_VISIBLE_DEVICES": three, "REMOTEGPU_SIMULATED_GPUS": "1"},
    ]
    assert kubelet.prefer([three, one, two], 2, [three]) == [three, one]
    kubelet.call("PreStartContainer", M["Empty"](), "Empty")


def test_a_device_nobody_knows_is_not_allocated(kubelet: Kubelet, plugin):
    plugin()
    with pytest.raises(grpc.RpcError, match="unknown devices: GPU-of-another-node"):
        kubelet.allocate(["GPU-of-another-node"])


def test_replicas_of_a_gpu_share_its_uuid_and_are_spread_over_the_gpus(kubelet: Kubelet, plugin):
    plugin("--replicas", "2", count=2)
    names = list(next(kubelet.watch()))
    zero, one = (name.removesuffix("::0") for name in names[::2])
    assert names == [f"{zero}::0", f"{zero}::1", f"{one}::0", f"{one}::1"]
    assert kubelet.allocate([f"{zero}::0", f"{zero}::1"])[0]["NVIDIA_VISIBLE_DEVICES"] == zero
    assert kubelet.prefer(names, 2, []) == [f"{zero}::0", f"{one}::0"]
    assert kubelet.prefer(names[1:], 1, []) == [f"{one}::0"]


def test_a_gpu_can_fall_ill_or_vanish_and_come_back(kubelet: Kubelet, plugin, tmp_path: Path):
    control = tmp_path / "gpus.json"
    process = plugin("--control", str(control))
    lists = kubelet.watch()
    zero, one, two, three = well = next(lists)
    control.write_text('{"unhealthy": [0, 3], "gone": [2]}')
    assert next(lists) == {zero: "Unhealthy", one: "Healthy", three: "Unhealthy"}
    with pytest.raises(grpc.RpcError, match="unknown devices"):
        kubelet.allocate([two])
    control.write_text('{"unhealthy": [')  # somebody is still writing
    assert "changes nothing" in until(lambda: next(line for line in process.stdout if "registered" not in line))
    control.write_text('{"gone": [2]}')
    assert next(lists) == {zero: "Healthy", one: "Healthy", three: "Healthy"}
    control.unlink()
    assert next(lists) == well


def test_a_restarted_kubelet_is_registered_with_again(kubelet: Kubelet, plugin):
    plugin()
    before = next(kubelet.watch())
    for empty in (False, True):
        kubelet.stop()
        kubelet.start(empty=empty)
        assert next(kubelet.watch()) == before
    time.sleep(1.5 * device_plugin.TICK)
    assert len(kubelet.registered) == 1


def test_a_plugin_waits_for_a_kubelet_that_is_not_there_yet(tmp_path: Path, plugin):
    kubelet = Kubelet(tmp_path)
    (kubelet.folder / "kubelet.sock").touch()  # left by a kubelet that was killed: nobody answers
    process = plugin()
    assert "not registered, trying again" in process.stdout.readline()
    kubelet.start()
    assert len(next(kubelet.watch())) == 4
    kubelet.stop()


def test_two_resources_are_served_side_by_side(kubelet: Kubelet, plugin):
    plugin(count=1)
    plugin(resource="nvidia.com/mig-1g.10gb", count=2)
    whole, slices = next(kubelet.watch()), next(kubelet.watch("nvidia.com/mig-1g.10gb"))
    assert (len(whole), len(slices)) == (1, 2)
    assert not whole.keys() & slices.keys()


def test_sigterm_ends_a_plugin_cleanly_while_it_is_watched(kubelet: Kubelet, plugin):
    process = plugin()
    lists = kubelet.watch()
    next(lists)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError):
        next(lists)
    assert process.wait(timeout=SOON) == 0
    assert [left.name for left in kubelet.folder.iterdir()] == ["kubelet.sock"]


def test_the_messages_have_the_api_s_numbers_on_the_wire():
    request = M["RegisterRequest"](
        version="v", endpoint="e", resource_name="r", options={"get_preferred_allocation_available": True}
    )
    assert encode(request) == b"\x0a\x01v\x12\x01e\x1a\x01r\x22\x02\x10\x01"
    assert encode(M["ListAndWatchResponse"](devices=[{"ID": "i", "health": "h"}])) == b"\x0a\x06\x0a\x01i\x12\x01h"
    answer = M["AllocateResponse"](container_responses=[{"envs": [{"key": "k", "value": "v"}]}])
    assert encode(answer) == b"\x0a\x08\x0a\x06\x0a\x01k\x12\x01v"
