"""What this machine, or the container on it, has: cores, memory and GPUs.

The network libraries are not imported: whoever asks may fork processes, and CUDA does not outlive a fork.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_DEVICE = re.compile(r"^(\s*)(?:GPU|MIG) .*\(UUID: ([^)]+)\)", re.MULTILINE)


def n_cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _CGROUP / "cpu.max"
    if quota.exists():
        time, period = quota.read_text().split()
        if time.isdigit():
            allowed = min(allowed, max(1, round(int(time) / int(period))))
    return allowed


def memory_bytes() -> int:
    """Memory of the machine, or of its container."""
    memory = int(psutil.virtual_memory().total)
    limit = _CGROUP / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory


def cuda_devices() -> list[str]:
    """The GPUs that torch can use here, as CUDA_VISIBLE_DEVICES names them; of those that it names, if it is set."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return []  # torch without CUDA
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        devices = [device.strip() for device in chosen.split(",")]
        ends = [n for n, device in enumerate(devices) if device in ("", "-1", "NoDevFiles")]
        return devices[: ends[0]] if ends else devices  # CUDA reads up to the first one that is none
    return listed_devices(gpu_listing())


def gpu_listing() -> str:
    """What `nvidia-smi -L` says; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    finished = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return finished.stdout if finished.returncode == 0 else ""


def listed_devices(listing: str) -> list[str]:
    """The devices in what `nvidia-smi -L` says; of a GPU that is partitioned (MIG), its parts."""
    devices: list[str] = []
    is_whole = False
    for indent, device in _DEVICE.findall(listing):
        if indent and is_whole:
            devices.pop()  # the GPU that this is a part of
        devices.append(device)
        is_whole = not indent
    return devices
