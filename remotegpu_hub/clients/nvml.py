"""What this machine offers: cores and memory after a reserve, and its GPUs by NVML, or simulated ones.

NVML is opened and closed at each call: a sync is rare, and a library kept open would hold the driver against an
upgrade, and go on answering from before a GPU fell off or was repartitioned. No driver or no GPU is no error.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pynvml

from ..errors import Invalid
from ..observed import Gpu, Host, Slot
from . import cgroups, processes

log = logging.getLogger(__name__)

WHOLE: Final = 1000
MAX_SHARES: Final = 64
_MPS_DAEMON: Final = "nvidia-cuda-mps"
"""The start of the name of the daemon that serves shares; its own context is nobody's work."""
_RECOVERY_ACTION: Final = 230
"""`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION` of nvml.h, which older bindings do not name."""
_SIMULATED_KEYS: Final = frozenset({"model", "memory_mib", "count", "shares"})


def observe_local(
    *,
    host_name: str,
    pool: str,
    hub_id: str,
    reserve_cpu_millis: int = 0,
    reserve_memory_bytes: int = 0,
    shares: Mapping[str, int] | None = None,
    simulated: Sequence[Mapping[str, Any]] = (),
    held_pids: frozenset[int] = frozenset(),
    address: str = "127.0.0.1",
) -> Host:
    """Look at this machine once.

    `shares` splits every GPU of a model into that many equal parts. With `simulated`, such as `[{"model": "A100-80GB",
    "memory_mib": 81920, "count": 4, "shares": 1}]`, the real GPUs are not looked at. `held_pids` are processes that are
    known to be ours beside those that carry the mark of `hub_id`.

    Raises: Invalid for a simulated GPU or a split that makes no sense.
    """
    shares = shares or {}
    check_shares(shares)
    seen = _simulated(host_name, simulated) if simulated else _real(shares, hub_id, held_pids)
    return Host(
        name=host_name,
        pool=pool,
        cpu_millis=max(0, cpu_millis() - reserve_cpu_millis),
        memory_bytes=max(0, memory_bytes() - reserve_memory_bytes),
        gpus=tuple(seen),
        simulated=bool(simulated),
        address=address,
        labels=_labels(),
    )


def check_shares(shares: Mapping[str, Any]) -> None:
    """Raises: Invalid for a split that makes no sense."""
    for model, parts in shares.items():
        _check_parts(model, parts)


def check_simulated(wanted: Sequence[Mapping[str, Any]]) -> None:
    """Raises: Invalid for a simulated GPU that makes no sense."""
    for _gpu in _simulated("", wanted):
        pass


def model_name(name: str) -> str:
    """Spell a driver's product name so that people can type it: `NVIDIA A100-SXM4-80GB` is `A100-SXM4-80GB`.

    A MIG device is named by its GPU and profile: `A100-SXM4-80GB/1g.10gb`.
    """
    name, _, profile = name.partition(" MIG ")
    name = re.sub(r"^(NVIDIA|AMD|Intel(\(R\))?)\s+", "", name.strip(), flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "GPU"
    profile = re.sub(r"[^A-Za-z0-9.+]+", "-", profile).strip("-")
    return f"{name}/{profile}"[:80] if profile else name[:60]


def slots_of(model: str, parts: int) -> tuple[Slot, ...]:
    """One whole slot, or equal parts; parts are rounded down, so that they never exceed the whole."""
    if parts == 1:
        return (Slot(model, WHOLE),)
    return (Slot(f"{model}/{parts}", WHOLE // parts),) * parts


def cpu_millis() -> int:
    """Milli-cores that this process may use: the machine's, its affinity, and the bounds of a container around it."""
    cores = len(os.sched_getaffinity(0)) * 1000
    for tree in cgroups.hierarchies():
        with suppress(OSError, ValueError):
            if tree.version == 2:
                quota, period = (tree.directory / "cpu.max").read_text().split()
            elif "cpu" in tree.controllers:
                quota = (tree.directory / "cpu.cfs_quota_us").read_text()
                period = (tree.directory / "cpu.cfs_period_us").read_text()
            else:
                continue
            if int(quota) > 0:
                cores = min(cores, int(quota) * 1000 // int(period))
    return cores


def memory_bytes() -> int:
    """Memory of the machine, or of the container around it when that is less."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    memory = int(match[1]) * 1024 if match else 0
    for tree in cgroups.hierarchies():
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                memory = min(memory, int((tree.directory / name).read_text()))
    return memory


def _simulated(host_name: str, wanted: Sequence[Mapping[str, Any]]) -> Iterator[Gpu]:
    index = 0
    for entry in wanted:
        if unknown := set(entry) - _SIMULATED_KEYS:
            raise Invalid("A simulated GPU has no {keys}.", keys=", ".join(sorted(unknown)))
        name, count, memory_mib, parts = (
            entry.get("model", ""),
            entry.get("count", 1),
            entry.get("memory_mib", 0),
            entry.get("shares", 1),
        )
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,58}[A-Za-z0-9])?", name):
            raise Invalid(
                "{model} is not a GPU model: write letters, digits and dashes, such as A100-80GB.", model=repr(name)
            )
        if not all(isinstance(n, int) and n >= 0 for n in (count, memory_mib)) or count > 1024:
            raise Invalid("Simulated {model} needs a count up to 1024 and memory_mib.", model=name)
        _check_parts(name, parts)
        for _ in range(count):
            yield Gpu(index, f"GPU-simulated-{host_name}-{index}", name, memory_mib, slots=slots_of(name, parts))
            index += 1


def _check_parts(model: str, parts: object) -> None:
    if not isinstance(parts, int) or not 1 <= parts <= MAX_SHARES:
        raise Invalid(
            "{parts} is not a number of shares for {model}: write 1 to {most}.",
            parts=repr(parts),
            model=model,
            most=MAX_SHARES,
        )


def _real(shares: Mapping[str, int], hub_id: str, held_pids: frozenset[int]) -> Iterator[Gpu]:
    with _opened() as opened:
        for index in range(pynvml.nvmlDeviceGetCount() if opened else 0):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                yield from _gpus(index, handle, shares, lambda device: _foreign(device, hub_id, held_pids))
            except pynvml.NVMLError as error:
                # Without a handle it has no identity either: it is missing from what is seen, which the sync notes.
                log.error("GPU %d does not tell what it is: %s", index, error)


def _gpus(index: int, handle: Any, shares: Mapping[str, int], foreign: Callable[[Any], bool]) -> Iterator[Gpu]:
    """The GPU itself, or each of its MIG devices: what CUDA can be told to use by its UUID is one thing here."""
    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    model = model_name(_text(pynvml.nvmlDeviceGetName(handle)))
    healthy = _healthy(handle, uuid)
    devices = _mig_devices(handle)
    if devices is None:
        slots = slots_of(model, shares.get(model, 1))
        yield Gpu(index, uuid, model, _memory_mib(handle), healthy, foreign(handle), slots)
        return
    whole = _slices(handle)
    for device in devices:
        part = model_name(_text(pynvml.nvmlDeviceGetName(device)))
        if "/" not in part:
            part = f"{model}/mig"
        slots = (Slot(part, WHOLE * min(_device_slices(device), whole) // whole),)
        uuid = _text(pynvml.nvmlDeviceGetUUID(device))
        yield Gpu(index, uuid, part, _memory_mib(device), healthy, foreign(device), slots)


@contextmanager
def _opened() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("No GPUs: %s", error)
        yield False
        return
    try:
        yield True
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _healthy(handle: Any, uuid: str) -> bool:
    """Whether work may be put on it: it answers, its rows could be remapped, and the driver asks for no recovery.

    The driver's recovery action (driver 560 and later) sums up XIDs, ECC and NVLink errors; older ones lack it.
    """
    try:
        pynvml.nvmlDeviceGetMemoryInfo(handle)
        if _asked(pynvml.nvmlDeviceGetRemappedRows, handle, default=(0, 0, 0, 0))[3]:
            log.error("GPU %s failed to remap a memory row; it must be replaced.", uuid)
            return False
        (action,) = _asked(pynvml.nvmlDeviceGetFieldValues, handle, [_RECOVERY_ACTION], default=(None,))
    except pynvml.NVMLError as error:
        log.error("GPU %s is not well: %s", uuid, error)
        return False
    if action is None or action.nvmlReturn != pynvml.NVML_SUCCESS or not action.value.uiVal:
        return True
    log.error("GPU %s needs recovery action %d.", uuid, action.value.uiVal)
    return False


def _asked(ask: Callable[..., Any], *arguments: Any, default: Any) -> Any:
    """Ask for what not every GPU and driver can tell."""
    try:
        return ask(*arguments)
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_InvalidArgument,
    ):
        return default


def _memory_mib(handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) // 2**20
    except pynvml.NVMLError:
        return 0


def _mig_devices(handle: Any) -> list[Any] | None:
    """The MIG devices of a GPU that is split; None for a GPU that is not."""
    current, _ = _asked(pynvml.nvmlDeviceGetMigMode, handle, default=(0, 0))
    if current != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    devices = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
            devices.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return devices


def _slices(handle: Any) -> int:
    """How many slices the whole GPU has: 7 on A100 and later, 4 on A30."""
    for profile, slices in (
        (pynvml.NVML_GPU_INSTANCE_PROFILE_7_SLICE, 7),
        (pynvml.NVML_GPU_INSTANCE_PROFILE_4_SLICE, 4),
    ):
        with suppress(pynvml.NVMLError):
            pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile)
            return slices
    return 7


def _device_slices(device: Any) -> int:
    return int(pynvml.nvmlDeviceGetAttributes(device).gpuInstanceSliceCount)


def _users(handle: Any) -> set[int]:
    """Processes that compute on it, clients of the MPS daemon too; not those that only draw."""
    pids: set[int] = set()
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetMPSComputeRunningProcesses):
        with suppress(pynvml.NVMLError):
            pids.update(process.pid for process in ask(handle))
    return pids


def _foreign(handle: Any, hub_id: str, held_pids: frozenset[int]) -> bool:
    """Whether somebody outside our runs computes on it.

    Our processes are read after the users, and the users once more, so that neither a run that began in between nor
    one that ended counts. A pid that this machine does not show (of another container) is nobody of ours.
    """
    users = _users(handle)
    if not users:
        return False
    trees = processes.read(hub_id).trees.values()
    strangers = users - held_pids - {process.pid for tree in trees for process in tree}
    return bool(strangers) and any(not _is_mps(pid) for pid in strangers & _users(handle))


def _is_mps(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith(_MPS_DAEMON)
    return False


def _labels() -> dict[str, str]:
    with _opened() as opened, suppress(pynvml.NVMLError):
        if opened:
            return {"driver": _text(pynvml.nvmlSystemGetDriverVersion())}
    return {}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
