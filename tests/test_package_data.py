"""What the wheel holds beside programs: the data set, the models that the package ships, what the pages are made of."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_all_data_and_the_shipped_models(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for package in ("screening", "workers", "migrations"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    models = tree / "screening" / "data" / "pretrained"
    models.mkdir(exist_ok=True)
    (models / "another.safetensors").write_bytes(b"a model")
    (models / "another.md").write_text("its card")
    subprocess.run(
        [sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('.')"],
        cwd=tree, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tree.glob("*.whl")
    folders = [tree / "screening" / name for name in ("data", "web/templates", "web/static")]
    expected = {str(path.relative_to(tree)) for data in folders for path in data.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        assert expected <= set(archive.namelist())
    assert "screening/data/pretrained/another.safetensors" in expected
