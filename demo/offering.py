"""What the demo hub has to give: the machine's GPUs or simulated ones, images, flavors, prices."""

import os
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from remotegpu_hub.clients.nvml import observe_local
from remotegpu_hub.units import GIB

CURRENCY = "CNY"

COMMAND = [sys.executable, "-m", "jupyterhub.singleuser", *(["--allow-root"] if os.geteuid() == 0 else [])]
"""Under root a server refuses to run unless it is told that this is meant: here everybody is the hub's own user."""

QUIET = {"JUPYTER_CONFIG_PATH": str(Path(__file__).resolve().parent / "lab")}
"""Keeps JupyterLab from asking whether it may fetch news from the Internet."""

SIMULATED_GPUS: list[dict[str, Any]] = [
    {"model": "A100-80GB", "memory_mib": 81920, "count": 3, "shares": 1},
    {"model": "A100-80GB", "memory_mib": 81920, "count": 1, "shares": 4},
    {"model": "RTX-4090", "memory_mib": 24564, "count": 2, "shares": 1},
]

IMAGES: dict[str, dict[str, Any]] = {
    "local:jupyterlab": {
        "display_name": "JupyterLab 4",
        "cmd": COMMAND,
        "env": {**QUIET, "JUPYTERHUB_DEFAULT_URL": "/lab"},
        "framework": "JupyterLab",
        "python_version": platform.python_version(),
    },
    "local:notebook": {
        "display_name": "Jupyter Notebook 7",
        "cmd": COMMAND,
        "env": {**QUIET, "JUPYTERHUB_DEFAULT_URL": "/tree"},
        "framework": "Notebook",
        "python_version": platform.python_version(),
    },
}

GPU_PRICES = {
    "A100-80GB": "12.50",
    "A100-80GB/4": "3.50",
    "RTX-4090": "2.80",
    "H200": "28.00",
    "H100": "24.00",
    "A100": "10.00",
    "L40": "8.00",
    "T4": "2.00",
}
OTHER_GPU_PRICE = "5.00"
OTHER_PRICES = {"cpu": "0.12", "memory": "0.03", "storage": "0.001"}


class Flavor(NamedTuple):
    """Small enough in cores and memory that a laptop of 2 cores and 4 GiB runs several."""

    name: str
    display_name: str
    gpu_model: str | None
    gpu_slots: int
    cpu_millis: int
    memory_bytes: int


def real_gpus() -> dict[str, int]:
    """GPUs of this machine by model, as its driver tells; empty where there are none."""
    return dict(Counter(gpu.model for gpu in observe_local(host_name="", pool="", hub_id="").gpus))


def flavors(real: dict[str, int]) -> list[Flavor]:
    """The presets of the spawn page, for the real GPUs or, without any, the simulated ones."""
    offered = [
        Flavor("cpu-small", "CPU small", None, 0, 250, GIB // 2),
        Flavor("cpu-large", "CPU large", None, 0, 1000, 2 * GIB),
    ]
    if not real:
        return [
            *offered,
            Flavor("a100-quarter", "A quarter of an A100", "A100-80GB/4", 1, 250, GIB // 2),
            Flavor("rtx-4090", "1 × RTX 4090", "RTX-4090", 1, 500, GIB),
            Flavor("a100-pair", "2 × A100", "A100-80GB", 2, 1000, 2 * GIB),
        ]
    for model, count in real.items():
        for wanted in {1, min(2, count)}:
            name = f"gpu-{wanted}x-{model}".lower().replace("/", "-")[:64]
            offered.append(Flavor(name, f"{wanted} × {model}", model, wanted, 500 * wanted, GIB * wanted))
    return offered


def prices(real: dict[str, int]) -> dict[str, str]:
    """Price by resource; a GPU model that is not in the list costs what the first listed part of its name costs."""
    wanted = {f"gpu:{model}": price for model, price in GPU_PRICES.items() if model in ("A100-80GB", "A100-80GB/4")}
    wanted["gpu:RTX-4090"] = GPU_PRICES["RTX-4090"]
    for model in real:
        near = (price for part, price in GPU_PRICES.items() if part in model)
        wanted[f"gpu:{model}"] = next(near, OTHER_GPU_PRICE)
    return wanted | OTHER_PRICES
