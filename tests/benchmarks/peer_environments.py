"""Peers of this project run in environments of their own, made on first use in `.benchmarks/peers`.

Their requirements contradict ours (SHRY pins numpy 1.26), and a figure of a peer is only worth something with its
version. A driver of `peer_drivers` runs under the peer's interpreter on one thread, with JSON on stdin and stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".benchmarks" / "peers"
DRIVERS = Path(__file__).parent / "peer_drivers"

# torch is a CPU build only when its version is pinned exactly
REQUIREMENTS = {
    "bsym": ("bsym==2.2.0", "-c", "constraints.txt"),
    "shry": ("shry==1.1.8",),
    "megnetsparse": ("MEGNetSparse==0.0.10", "torch==2.13.0", "torch-geometric", "-c", "constraints.txt"),
}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MAX_S = 1800.0


def run_peer(name: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """What a peer's driver answers; skips the benchmark where the peer cannot be installed."""
    done = subprocess.run(
        [_peer_python(name), DRIVERS / f"run_{name}.py"],
        input=json.dumps(question), capture_output=True, text=True, timeout=MAX_S, env={**os.environ, **ONE_THREAD},
    )  # fmt: skip
    assert done.returncode == 0, f"the driver of {name} failed:\n{done.stderr[-3000:]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, which is made unless it is there with the same requirements."""
    environment = ENVIRONMENTS / name
    python, stamp = environment / "bin" / "python", environment / "installed"
    wanted = " ".join(REQUIREMENTS[name])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", environment],
        [python, "-m", "pip", "install", "--quiet", "--retries", "2", *REQUIREMENTS[name]],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MAX_S)
        if done.returncode:
            pytest.skip(f"{name} cannot be installed here: {done.stderr.strip()[-500:]}")
    stamp.write_text(wanted)
    return python
