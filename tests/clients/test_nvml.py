"""The machine's own numbers, simulated GPUs, and faults of a driver that this machine need not have."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from remotegpu_hub import errors
from remotegpu_hub.clients import nvml, processes
from remotegpu_hub.observed import Gpu, Slot

A100 = "NVIDIA A100-SXM4-80GB"


@dataclass
class Device:
    """What a driver tells of one GPU; `faults` maps the end of a call's name to the error that it raises."""

    uuid: str
    name: str = A100
    memory_mib: int = 81920
    pids: list[int] = field(default_factory=list)
    faults: dict[str, type[Exception] | int] = field(default_factory=dict)
    remap_failed: bool = False
    recovery_action: int = 0
    mig: list["Device"] | None = None
    slices: int = 7


class Driver:
    """Answers as pynvml does for these devices: there is no driver to break on a machine without a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: list[Device]) -> None:
        self.open = 0
        self.devices = devices
        calls = {
            "nvmlInit": self.init,
            "nvmlShutdown": self.shutdown,
            "nvmlDeviceGetCount": lambda: len(devices),
            "nvmlDeviceGetHandleByIndex": lambda index: self.told(devices[index], "HandleByIndex", devices[index]),
            "nvmlDeviceGetUUID": lambda d: self.told(d, "UUID", d.uuid),
            "nvmlDeviceGetName": lambda d: self.told(d, "Name", d.name),
            "nvmlDeviceGetMemoryInfo": lambda d: self.told(
                d, "MemoryInfo", SimpleNamespace(total=d.memory_mib * 2**20)
            ),
            "nvmlDeviceGetRemappedRows": lambda d: self.told(d, "RemappedRows", (0, 0, 0, int(d.remap_failed))),
            "nvmlDeviceGetFieldValues": lambda d, _: self.told(
                d,
                "FieldValues",
                [SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, value=SimpleNamespace(uiVal=d.recovery_action))],
            ),
            "nvmlDeviceGetMigMode": lambda d: self.told(d, "MigMode", (int(d.mig is not None),) * 2),
            "nvmlDeviceGetMaxMigDeviceCount": lambda d: d.slices,
            "nvmlDeviceGetMigDeviceHandleByIndex": self.mig_device,
            "nvmlDeviceGetGpuInstanceProfileInfo": self.profile,
            "nvmlDeviceGetAttributes": lambda d: SimpleNamespace(gpuInstanceSliceCount=d.slices),
            "nvmlDeviceGetComputeRunningProcesses": lambda d: self.told(
                d, "Processes", [SimpleNamespace(pid=pid) for pid in d.pids]
            ),
            "nvmlDeviceGetMPSComputeRunningProcesses": lambda d: self.told(d, "MPS", []),
            "nvmlSystemGetDriverVersion": lambda: "580.65.06",
        }
        for name, call in calls.items():
            assert hasattr(pynvml, name), name
            monkeypatch.setattr(pynvml, name, call)

    def init(self) -> None:
        self.open += 1

    def shutdown(self) -> None:
        self.open -= 1

    def told(self, device: Device, call: str, answer: Any) -> Any:
        assert self.open, "asked a closed driver"
        if (fault := device.faults.get(call)) is not None:
            raise pynvml.NVMLError(fault)
        return answer

    def mig_device(self, device: Device, number: int) -> Device:
        if device.mig is None or number >= len(device.mig):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return device.mig[number]

    def profile(self, device: Device, profile: int) -> None:
        if profile != {7: pynvml.NVML_GPU_INSTANCE_PROFILE_7_SLICE, 4: pynvml.NVML_GPU_INSTANCE_PROFILE_4_SLICE}.get(
            device.slices
        ):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def observed(hub_id: str = "test", **more: Any) -> tuple[Gpu, ...]:
    return nvml.observe_local(host_name="box", pool="local", hub_id=hub_id, **more).gpus


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        pytest.param("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB", id="vendor dropped"),
        pytest.param("NVIDIA GeForce RTX 4090", "GeForce-RTX-4090", id="spaces"),
        pytest.param("Tesla V100-PCIE-16GB", "Tesla-V100-PCIE-16GB", id="old name without vendor"),
        pytest.param("NVIDIA H200", "H200", id="short"),
        pytest.param("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada-Generation", id="many words"),
        pytest.param("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "A100-SXM4-80GB/1g.10gb", id="MIG"),
        pytest.param("NVIDIA <b>X</b>/4", "b-X-b-4", id="hostile"),
        pytest.param("", "GPU", id="nothing"),
    ],
)
def test_a_model_is_spelt_so_that_people_can_type_it(told: str, named: str) -> None:
    assert nvml.model_name(told) == named


def test_a_machine_without_a_driver_is_a_host_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    host = nvml.observe_local(host_name="box", pool="local", hub_id="test")
    assert (host.gpus, host.simulated, host.online) == ((), False, True)


def test_the_reserve_is_taken_off_what_the_machine_has() -> None:
    whole = nvml.observe_local(host_name="box", pool="local", hub_id="test")
    assert 0 < whole.cpu_millis <= (os.cpu_count() or 1) * 1000
    assert 0 < whole.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rest = nvml.observe_local(
        host_name="box", pool="local", hub_id="test", reserve_cpu_millis=500, reserve_memory_bytes=2**30
    )
    assert whole.cpu_millis - rest.cpu_millis == 500
    assert whole.memory_bytes - rest.memory_bytes == 2**30
    nothing = nvml.observe_local(host_name="box", pool="local", hub_id="test", reserve_cpu_millis=10**9)
    assert nothing.cpu_millis == 0


def test_simulated_gpus_are_plainly_simulated_and_the_same_each_time() -> None:
    simulated = [
        {"model": "A100-80GB", "memory_mib": 81920, "count": 2, "shares": 1},
        {"model": "L4", "memory_mib": 23034, "shares": 4},
    ]
    host = nvml.observe_local(host_name="box", pool="local", hub_id="test", simulated=simulated)
    assert host.simulated
    assert host.gpus == (
        Gpu(0, "GPU-simulated-box-0", "A100-80GB", 81920, slots=(Slot("A100-80GB", 1000),)),
        Gpu(1, "GPU-simulated-box-1", "A100-80GB", 81920, slots=(Slot("A100-80GB", 1000),)),
        Gpu(2, "GPU-simulated-box-2", "L4", 23034, slots=(Slot("L4/4", 250),) * 4),
    )
    assert nvml.observe_local(host_name="box", pool="local", hub_id="test", simulated=simulated) == host


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param({"model": "A 100"}, "is not a GPU model", id="space in the name"),
        pytest.param({"model": "A100/2"}, "is not a GPU model", id="a share as model"),
        pytest.param({}, "is not a GPU model", id="no name"),
        pytest.param({"model": "A100", "count": -1}, "needs a count", id="negative count"),
        pytest.param({"model": "A100", "shares": 0}, "not a number of shares", id="no share"),
        pytest.param({"model": "A100", "shares": "2"}, "not a number of shares", id="text"),
        pytest.param({"model": "A100", "colour": 1}, "has no colour", id="unknown key"),
    ],
)
def test_a_simulated_gpu_that_makes_no_sense_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.Invalid, match=message):
        observed(simulated=[entry])


def test_a_seventh_is_rounded_down_so_that_parts_never_exceed_the_whole() -> None:
    slots = nvml.slots_of("A100", 7)
    assert slots == (Slot("A100/7", 142),) * 7
    assert sum(slot.gpu_millis for slot in slots) <= 1000


def test_real_gpus_are_told_with_model_memory_and_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, [Device("GPU-a"), Device("GPU-b", "NVIDIA L4", 23034)])
    host = nvml.observe_local(host_name="box", pool="local", hub_id="test", shares={"L4": 2})
    assert host.gpus == (
        Gpu(0, "GPU-a", "A100-SXM4-80GB", 81920, slots=(Slot("A100-SXM4-80GB", 1000),)),
        Gpu(1, "GPU-b", "L4", 23034, slots=(Slot("L4/2", 500),) * 2),
    )
    assert host.labels == {"driver": "580.65.06"}
    assert not host.simulated
    assert driver.open == 0, "the driver stayed open"


@pytest.mark.parametrize(
    "sick",
    [
        pytest.param(Device("GPU-a", faults={"MemoryInfo": pynvml.NVML_ERROR_GPU_IS_LOST}), id="fell off the bus"),
        pytest.param(Device("GPU-a", faults={"RemappedRows": pynvml.NVML_ERROR_RESET_REQUIRED}), id="reset required"),
        pytest.param(Device("GPU-a", remap_failed=True), id="a row could not be remapped"),
        pytest.param(Device("GPU-a", recovery_action=1), id="the driver asks for a reset"),
        pytest.param(Device("GPU-a", recovery_action=2), id="the driver asks for a reboot"),
    ],
)
def test_a_sick_gpu_is_seen_and_not_healthy_and_the_next_one_is(monkeypatch: pytest.MonkeyPatch, sick: Device) -> None:
    Driver(monkeypatch, [sick, Device("GPU-b")])
    assert [(gpu.uuid, gpu.healthy) for gpu in observed()] == [("GPU-a", False), ("GPU-b", True)]


def test_an_older_gpu_that_cannot_tell_its_health_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = pynvml.NVML_ERROR_NOT_SUPPORTED
    Driver(monkeypatch, [Device("GPU-a", faults=dict.fromkeys(("RemappedRows", "FieldValues", "MigMode"), unknown))])
    assert [gpu.healthy for gpu in observed()] == [True]


def test_a_gpu_without_identity_is_left_out_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {"HandleByIndex": pynvml.NVML_ERROR_GPU_IS_LOST}
    Driver(monkeypatch, [Device("GPU-a", faults=lost), Device("GPU-b")])
    assert [(gpu.index, gpu.uuid) for gpu in observed()] == [(1, "GPU-b")]


def test_each_mig_device_is_held_by_its_own_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [
        Device("MIG-1", A100 + " MIG 3g.40gb", 40960, slices=3),
        Device("MIG-2", A100 + " MIG 1g.10gb", 9728, slices=1),
    ]
    Driver(monkeypatch, [Device("GPU-a", mig=devices), Device("GPU-b", mig=[])])
    assert observed() == (
        Gpu(0, "MIG-1", "A100-SXM4-80GB/3g.40gb", 40960, slots=(Slot("A100-SXM4-80GB/3g.40gb", 428),)),
        Gpu(0, "MIG-2", "A100-SXM4-80GB/1g.10gb", 9728, slots=(Slot("A100-SXM4-80GB/1g.10gb", 142),)),
    )


def test_a_slice_of_an_a30_is_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("MIG-1", "NVIDIA A30 MIG 1g.6gb", 5952, slices=1)
    Driver(monkeypatch, [Device("GPU-a", "NVIDIA A30", mig=[device], slices=4)])
    assert [slot.gpu_millis for gpu in observed() for slot in gpu.slots] == [250]


def test_a_process_of_somebody_else_makes_a_gpu_foreign(
    monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]
) -> None:
    Driver(monkeypatch, [Device("GPU-a", pids=[process.pid]), Device("GPU-b")])
    assert [gpu.foreign for gpu in observed()] == [True, False]
    assert [gpu.foreign for gpu in observed(held_pids=frozenset({process.pid}))] == [False, False]


def test_a_process_of_a_run_is_not_foreign_even_a_child_without_env_vars(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub_id = f"test{uuid.uuid4().hex[:8]}"
    told = tmp_path / "pid"
    run = subprocess.Popen(
        ["sh", "-c", f"env -i sh -c 'echo $$ >{told}; exec sleep 1000' & wait"],
        env={**os.environ, **processes.environment(hub_id, 1)},
        start_new_session=True,
    )
    try:
        while not (told.exists() and told.read_text()):
            assert run.poll() is None
        Driver(monkeypatch, [Device("GPU-a", pids=[int(told.read_text())])])
        assert [gpu.foreign for gpu in observed(hub_id)] == [False]
        assert [gpu.foreign for gpu in observed("another-hub")] == [True]
    finally:
        assert processes.stop_tree(hub_id, 1, grace_seconds=0.1)
        run.wait()


def test_a_process_that_ended_meanwhile_makes_nothing_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, [Device("GPU-a")])
    answers = iter([[SimpleNamespace(pid=2**22)], []])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _: next(answers))
    assert [gpu.foreign for gpu in observed()] == [False]


def test_real_gpus_of_this_machine() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"NO GPU HERE, so nothing is shown about a real one: {error}")
    pynvml.nvmlShutdown()
    gpus = observed()
    assert gpus
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) and gpu.memory_mib > 0 for gpu in gpus)
