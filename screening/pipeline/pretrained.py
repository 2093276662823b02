"""Models in files: those that the package ships, and those that somebody has exported.

A file is safetensors, never a pickle: the weights as `screening.learning.artifacts` packs them, with the card of
`screening.pipeline.model_cards` in the metadata beside them. Reading a file runs nothing that it holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from screening.errors import FileFormatError, UnknownNameError
from screening.pipeline.model_cards import ModelCard, card_from_json, card_to_json

if TYPE_CHECKING:
    from screening.learning.ensemble import Ensemble

DEFAULT_MODEL = "2dmd-pbe"
SUFFIX = ".safetensors"
_CARD = "model_card"  # key in the metadata
_MOST_BYTES = 1 << 30
_NETWORKS = "network."  # how the tensors of networks are called
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # the last is what torch.save writes


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A model as a file holds it.

    Attributes:
        packed: the whole file.
    """

    card: ModelCard
    packed: bytes

    def ensemble(self) -> Ensemble:
        """The networks.

        Raises:
            FileFormatError: the weights are not those of a network of this version.
        """
        from screening.learning.artifacts import ensemble_from_bytes

        try:
            ensemble = ensemble_from_bytes(self.packed)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise FileFormatError(
                f"the weights of model {self.card.name} do not fit its network ({type(error).__name__}: {reason}); "
                "it was changed, or comes from another version of screening: export it again"
            ) from error
        if missing := sorted(set(ensemble.references.hosts) - {host.name for host in self.card.hosts}):
            raise FileFormatError(
                f"the card of model {self.card.name} lacks its hosts {', '.join(missing)}; export it again"
            )
        return ensemble


def shipped_models() -> tuple[str, ...]:
    """Names of the models that the package ships."""
    found = [entry.name for entry in _folder().iterdir()] if _folder().is_dir() else []
    return tuple(sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)))


def is_model_path(name: str) -> bool:
    """Whether a name is that of a file, not of a model."""
    return name.endswith(SUFFIX) or Path(name).name != name


def read_model_file(name: str | Path) -> ModelFile:
    """A model by its path, or a shipped one by its name.

    Raises:
        UnknownNameError: there is no such file, and no shipped model is called so.
        FileFormatError: the file is cut short, a pickle, or no model of this program.
    """
    if isinstance(name, str) and name in shipped_models():
        return unpack_model(_folder().joinpath(name + SUFFIX).read_bytes(), f"the shipped model {name}")
    path = Path(name)
    if not path.is_file():
        raise UnknownNameError(
            f"{name} is neither a file nor a model that comes with the package; those are "
            f"{', '.join(shipped_models()) or 'none'}"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise FileFormatError(f"{path} has {path.stat().st_size} bytes; a model has a few million")
    return unpack_model(path.read_bytes(), str(path))


def load_model_file(path: str | Path) -> Ensemble:
    """The networks of a model's file, or of a shipped model.

    Raises:
        UnknownNameError, FileFormatError: as `read_model_file` says.
    """
    return read_model_file(path).ensemble()


def unpack_model(packed: bytes, shown: str) -> ModelFile:
    """The model of a file's bytes.

    Args:
        shown: what messages call the file.

    Raises:
        FileFormatError: they are cut short, a pickle, or no model of this program.
    """
    if packed.startswith(_PICKLES):
        raise FileFormatError(
            f"{shown} is a pickle, which can run any program when it is opened and is never opened here; expected a "
            "safetensors file, as `screening model export` writes it"
        )
    card = _metadata(packed, shown).get(_CARD)
    if card is None:
        raise FileFormatError(
            f"{shown} is a safetensors file without a model's card; expected one that `screening model export` wrote"
        )
    try:
        return ModelFile(card_from_json(json.loads(card, parse_constant=_refuse)), packed)
    except ValueError as error:
        raise FileFormatError(f"{shown}: the card is not JSON ({error}); export the model again") from error
    except FileFormatError as error:
        raise FileFormatError(f"{shown}: {error}") from error


def has_card(packed: bytes) -> bool:
    """Whether the weights of a model carry a card; looks at the header only."""
    header = packed[8 : 8 + int.from_bytes(packed[:8], "little")]
    return f'"{_CARD}"'.encode() in header


def with_card(packed: bytes, card: ModelCard) -> bytes:
    """The same weights with this card, in place of the one they have, if any; equal bytes for equal models."""
    metadata = _metadata(packed, "the weights") | {_CARD: json.dumps(card_to_json(card), allow_nan=False)}
    end = 8 + int.from_bytes(packed[:8], "little")
    # not by safetensors.save, which writes metadata in an order of chance; the tensors lie relative to the header's end
    header = json.dumps({**json.loads(packed[8:end]), "__metadata__": dict(sorted(metadata.items()))}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + packed[end:]


def in_half_precision(packed: bytes) -> bytes:
    """The same model with the weights of its networks in half precision, half as large.

    Reading it gives single precision again. Everything else (references, calibration) keeps its precision.
    """
    tensors = {
        name: tensor.astype(np.float16) if name.startswith(_NETWORKS) and tensor.dtype == np.float32 else tensor
        for name, tensor in load(packed).items()
    }
    assert all(np.isfinite(tensor).all() for name, tensor in tensors.items() if name.startswith(_NETWORKS))
    return bytes(save(tensors, dict(sorted(_metadata(packed, "the weights").items()))))


def write_model_file(path: Path, model: ModelFile) -> None:
    """Write a model, in one step: what was there before is replaced or left whole.

    Raises:
        FileFormatError: as `check_output` says.
    """
    check_output(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(model.packed)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    """Make sure that a model can be written there, before hours are spent on it.

    Raises:
        FileFormatError: the path does not end as a safetensors file, or its folder is not there.
    """
    if path.suffix != SUFFIX:
        raise FileFormatError(f"{path} should end in {SUFFIX}: a model is written as safetensors")
    if not path.parent.is_dir():
        raise FileFormatError(f"there is no folder {path.parent} for {path.name}; make it first")


def _folder() -> Traversable:
    return resources.files("screening").joinpath("data", "pretrained")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _metadata(packed: bytes, shown: str) -> dict[str, str]:
    """The metadata of a safetensors file, which is checked as a whole first.

    Raises:
        FileFormatError: the bytes are not all of one.
    """
    try:
        load(packed)
        header: dict[str, Any] = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(
            f"{shown} is no whole safetensors file ({error}); it is cut short or of another format: fetch it again, "
            "or write it with `screening model export`"
        ) from error
    return dict(header.get("__metadata__") or {})
