"""What `nvidia-smi -L` lists, as its manual shows it, and which of it CUDA may see."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from screening.services import machine

TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-4b3bd1f2-6f0c-4ac0-a7e5-55b1eb3ba8c5)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-0fd6b9d0-5ab1-7a6b-8b3e-5d5b2f9a3f11)
"""
PARTITIONED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8b8b8b8b-d268-c3f3-1b07-005d5ae1dc3f)
"""


def test_every_gpu_is_a_device() -> None:
    assert machine.listed_devices(TWO) == [
        "GPU-4b3bd1f2-6f0c-4ac0-a7e5-55b1eb3ba8c5",
        "GPU-0fd6b9d0-5ab1-7a6b-8b3e-5d5b2f9a3f11",
    ]


def test_of_a_partitioned_gpu_its_parts_are_devices() -> None:
    assert machine.listed_devices(PARTITIONED) == [
        "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
        "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
        "GPU-8b8b8b8b-d268-c3f3-1b07-005d5ae1dc3f",
    ]


@pytest.mark.parametrize("listing", ["", "No devices found.\n"])
def test_where_nothing_is_listed_there_is_no_device(listing: str) -> None:
    assert machine.listed_devices(listing) == []


@pytest.fixture
def torch_with_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch whose wheel has CUDA; nothing of it is imported."""
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('torch was imported')\n")
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.mark.usefixtures("torch_with_cuda")
@pytest.mark.parametrize(
    ("chosen", "devices"), [("2,3", ["2", "3"]), ("", []), ("-1", []), ("0,-1,1", ["0"]), ("GPU-1a", ["GPU-1a"])]
)
def test_the_devices_that_the_user_chose_are_kept(
    chosen: str, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert machine.cuda_devices() == devices


@pytest.mark.usefixtures("torch_with_cuda")
def test_without_a_choice_all_that_are_listed_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{TWO}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.cuda_devices() == machine.listed_devices(TWO)


def test_a_torch_without_cuda_has_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert machine.cuda_devices() == []


def test_a_machine_has_no_more_than_the_system_says() -> None:
    assert 1 <= machine.n_cores() <= (os.cpu_count() or 1)
    assert 0 < machine.memory_bytes() <= psutil.virtual_memory().total
