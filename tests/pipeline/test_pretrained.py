"""Files of models: what is written is read, and what is no model is refused without running anything of it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from screening.errors import FileFormatError, UnknownNameError
from screening.learning.scorer import score_configurations
from screening.pipeline.pretrained import (
    ModelFile,
    has_card,
    in_half_precision,
    is_model_path,
    load_model_file,
    read_model_file,
    unpack_model,
    with_card,
    write_model_file,
)
from tests.learning.synthetic import labelled_rows
from tests.pipeline.made_models import small_model


class _Writes:
    """A pickle of it writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def metadata_of(packed: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])["__metadata__"]
    return found


def test_a_model_that_was_written_predicts_the_same(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    write_model_file(path, small_model())
    rows = labelled_rows(20, seed=3)
    results = [
        score_configurations(ensemble, rows.supercells[0], rows.configurations, device="cpu")
        for ensemble in (small_model().ensemble(), load_model_file(path))
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.safetensors"]


def test_a_card_can_be_changed_without_touching_the_weights() -> None:
    small = small_model()
    renamed = unpack_model(with_card(small.packed, replace(small.card, name="other")), "x")
    assert renamed.card.name == "other"
    before, after = load(small.packed), load(renamed.packed)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])
    assert metadata_of(renamed.packed)["card"] == metadata_of(small.packed)["card"]
    assert with_card(renamed.packed, small.card) == small.packed


def test_a_card_with_numbers_that_are_none_is_refused() -> None:
    packed = small_model().packed
    metadata = metadata_of(packed)
    faulty = metadata["model_card"].replace("12.5", "Infinity")
    with pytest.raises(FileFormatError, match="Infinity is no number"):
        unpack_model(save(load(packed), {**metadata, "model_card": faulty}), "faulty")


def test_half_precision_halves_a_file_and_hardly_moves_its_predictions() -> None:
    small = small_model()
    half = unpack_model(in_half_precision(small.packed), "half")
    assert half.card.name == "small"
    weights = {name: tensor for name, tensor in load(half.packed).items() if name.startswith("network.")}
    assert {tensor.dtype for tensor in weights.values()} == {np.dtype(np.float16)}
    assert len(half.packed) < 0.7 * len(small.packed)
    rows = labelled_rows(40, seed=3)
    (mean, std), (changed, _) = (
        score_configurations(model.ensemble(), rows.supercells[0], rows.configurations, device="cpu")
        for model in (small, half)
    )
    assert np.abs(changed - mean).max() > 0
    assert (np.abs(changed - mean) < 0.02 * std).all()


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5000, -4, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(small_model().packed[:kept])
    with pytest.raises(FileFormatError, match=r"cut\.safetensors is no whole safetensors file .*cut short"):
        read_model_file(path)


def test_a_pickle_is_refused_and_not_opened(tmp_path: Path) -> None:
    trap = tmp_path / "written by the pickle"
    path = tmp_path / "model.safetensors"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(_Writes(trap), protocol=protocol))
        with pytest.raises(FileFormatError, match="is a pickle"):
            read_model_file(path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(FileFormatError, match="is a pickle"):
        read_model_file(path)
    assert not trap.exists()


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}):
        path.write_bytes(save({"weights": np.zeros(3)}, metadata))
        with pytest.raises(FileFormatError, match="without a model's card"):
            read_model_file(path)
    path.write_bytes(save({"weights": np.zeros(3)}, {"model_card": "{"}))
    with pytest.raises(FileFormatError, match="the card is not JSON"):
        read_model_file(path)
    path.write_bytes(save({"weights": np.zeros(3)}, {"model_card": "{}"}))
    with pytest.raises(FileFormatError, match=r"foreign\.safetensors: the card of the model is None"):
        read_model_file(path)


def test_weights_that_do_not_fit_their_network_are_refused() -> None:
    packed = small_model().packed
    tensors, metadata = load(packed), metadata_of(packed)
    card = json.loads(metadata["card"])
    name = next(name for name in sorted(tensors) if name.startswith("network."))
    faulty = {
        "a tensor is missing": ({n: t for n, t in tensors.items() if n != name}, card),
        "a tensor has another shape": ({**tensors, name: np.zeros((2, 2), np.float32)}, card),
        "an unknown size": (tensors, {**card, "architecture": {**card["architecture"], "colour": 3}}),
        "no references": (tensors, {key: value for key, value in card.items() if key != "references"}),
    }
    for what, (changed, structure) in faulty.items():
        model = unpack_model(save(changed, {**metadata, "card": json.dumps(structure)}), what)
        with pytest.raises(FileFormatError, match="the weights of model small do not fit its network"):
            model.ensemble()


def test_weights_of_another_format_are_refused() -> None:
    packed = small_model().packed
    metadata = metadata_of(packed)
    old = {**json.loads(metadata["card"]), "format": "screening ensemble 1"}
    model = unpack_model(save(load(packed), {**metadata, "card": json.dumps(old)}), "old")
    with pytest.raises(FileFormatError, match="of format 'screening ensemble 1'"):
        model.ensemble()


def test_a_card_without_the_hosts_of_its_weights_is_refused() -> None:
    small = small_model()
    with pytest.raises(FileFormatError, match="lacks its hosts MoS2"):
        unpack_model(with_card(small.packed, replace(small.card, hosts=())), "x").ensemble()


def test_a_name_that_is_neither_a_file_nor_a_shipped_model_is_refused(tmp_path: Path) -> None:
    for name in ("nobody", str(tmp_path / "absent.safetensors"), tmp_path):
        with pytest.raises(UnknownNameError, match="neither a file nor a model that comes with the package"):
            read_model_file(name)


def test_a_model_is_written_only_where_it_can_be(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"should end in \.safetensors"):
        write_model_file(tmp_path / "model.pt", small_model())
    with pytest.raises(FileFormatError, match="there is no folder"):
        write_model_file(tmp_path / "absent" / "model.safetensors", small_model())
    assert not list(tmp_path.iterdir())


def test_bytes_without_a_card_are_told_from_those_with_one() -> None:
    small = small_model()
    metadata = {key: value for key, value in metadata_of(small.packed).items() if key != "model_card"}
    assert has_card(small.packed)
    assert not has_card(save(load(small.packed), metadata))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("2dmd-pbe", False), ("mos2", False), ("mine.safetensors", True), ("models/mine", True), ("./mine", True)],
)
def test_a_path_is_told_from_a_name(name: str, expected: bool) -> None:
    assert is_model_path(name) is expected


def test_reading_a_card_imports_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    write_model_file(path, ModelFile(small_model().card, small_model().packed))
    program = (
        "import sys; from screening.pipeline.pretrained import read_model_file; "
        f"print(read_model_file({str(path)!r}).card.name, 'torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["small", "False"]
