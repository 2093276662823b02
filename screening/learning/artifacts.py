"""Ensembles and checkpoints as safetensors bytes, never pickle.

What is not a tensor (names, sizes, settings) is JSON in the file's metadata. Format: Hugging Face
safetensors: eight bytes with the length of a JSON header, the header, the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from screening.errors import FileFormatError
from screening.learning.calibration import Calibration
from screening.learning.ensemble import Domain, Ensemble
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.novelty import Novelty
from screening.learning.references import References

FORMAT = "screening ensemble 3"  # 1 was MEGNet, 2 had one calibration for all hosts and knew not what it had seen
_NETWORK = "network."
_EXTRA = "extra."
_ARRAYS = ("energies", "means", "scales")
_CALIBRATION_ARRAYS = ("floors", "factors", "multiples")
_NOVELTY_ARRAYS = ("compositions", "closest")


def pack(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> bytes:
    """Tensors and a JSON card as safetensors bytes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    packed = save(contiguous, metadata={"card": json.dumps(card)})
    assert isinstance(packed, bytes)
    return packed


def unpack(packed: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of safetensors bytes.

    Raises:
        FileFormatError: the bytes are not what `pack` makes.
    """
    try:
        tensors = load(packed)
        header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
        card = json.loads(header["__metadata__"]["card"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(f"the weights are no safetensors file of this program ({error})") from error
    return tensors, card


def ensemble_to_bytes(ensemble: Ensemble) -> bytes:
    """An ensemble as safetensors bytes."""
    references = ensemble.references
    tensors = {
        f"{_NETWORK}{h}.{name}": tensor
        for h, network in enumerate(ensemble.networks)
        for name, tensor in network.state_dict().items()
    }
    tensors |= references_to_tensors(references)
    tensors |= _arrays_to_tensors("calibration.", ensemble.calibration, _CALIBRATION_ARRAYS)
    tensors |= _arrays_to_tensors("novelty.", ensemble.novelty, _NOVELTY_ARRAYS)
    tensors |= {f"{_EXTRA}{name}": torch.from_numpy(array) for name, array in ensemble.extra.items()}
    card = {
        "format": FORMAT,
        "architecture": asdict(ensemble.networks[0].architecture),
        "domains": [asdict(domain) for domain in ensemble.domains],
        "properties": ensemble.properties,
        "references": references_to_card(references),
    }
    return pack(tensors, card)


@lru_cache(maxsize=4)  # chunk after chunk is scored by one model
def ensemble_from_bytes(packed: bytes) -> Ensemble:
    """The ensemble of safetensors bytes.

    Raises:
        FileFormatError: the bytes hold no ensemble of this version.
    """
    tensors, card = unpack(packed)
    if card.get("format") != FORMAT:
        raise FileFormatError(
            f"the weights are of format {card.get('format')!r}, this version reads {FORMAT!r}; train the model again"
        )
    if "domains" not in card:  # the first files of this format had a network for each host, and did not say so
        raise FileFormatError(
            f"the weights are of an early kind of format {FORMAT!r} without domains, expected a list of which network "
            "serves which host and numbers of defects; train the model again"
        )
    architecture = Architecture(**card["architecture"])
    references = references_from(card["references"], tensors)
    calibration = Calibration(*(tensors[f"calibration.{name}"].numpy() for name in _CALIBRATION_ARRAYS))
    seen = (tensors[f"novelty.{name}"].numpy() for name in _NOVELTY_ARRAYS)
    novelty = Novelty(references.hosts, references.codes, *seen)
    extra = {name.removeprefix(_EXTRA): t.numpy() for name, t in tensors.items() if name.startswith(_EXTRA)}
    domains = tuple(Domain(**domain) for domain in card["domains"])
    networks = tuple(_network_from(tensors, f"{_NETWORK}{h}.", architecture) for h in range(len(domains)))
    return Ensemble(domains, networks, references, calibration, novelty, tuple(card["properties"]), extra)


def _network_from(tensors: Mapping[str, Tensor], prefix: str, architecture: Architecture) -> SparseDefectNetwork:
    network = SparseDefectNetwork(architecture)
    network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    return network.eval()


def references_to_tensors(references: References) -> dict[str, Tensor]:
    """The arrays of references."""
    return _arrays_to_tensors("references.", references, _ARRAYS)


def _arrays_to_tensors(prefix: str, owner: object, names: Sequence[str]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": torch.from_numpy(np.asarray(getattr(owner, name))) for name in names}


def references_to_card(references: References) -> dict[str, Any]:
    """The names of references."""
    return {"hosts": references.hosts, "codes": references.codes, "outputs": references.outputs}


def references_from(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> References:
    """References of their card and arrays."""
    return References(
        tuple(card["hosts"]),
        tuple(card["codes"]),
        tuple(card["outputs"]),
        *(tensors[f"references.{name}"].numpy() for name in _ARRAYS),
    )
