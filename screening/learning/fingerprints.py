"""Fingerprints of configurations: how a model without a database knows what it has learnt from, and leaves out.

A fingerprint is the BLAKE2b hash of 8 bytes of what a configuration is: the host's name, the supercell's matrix, and
sites and codes of the defects in canonical form. It is the same on every platform and in every version; two of
100,000 configurations share one with a probability of 3e-10. A model file holds the sorted fingerprints of its rows
(8 bytes each), so that an evaluation can leave them out without their labels being there. Folds follow from them too:
a model that goes on from another one, of a file or of a database, leaves the same configurations out as that did.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell

_DIGEST_BYTES = 8
_FOLDS = 2**31
_PERSON = b"configuration 1"  # BLAKE2's salt of what is hashed: another encoding has another number


class Placed(Protocol):
    """Configurations with their supercells, as `LabelledRows` has them."""

    @property
    def supercells(self) -> tuple[Supercell, ...]:
        """The supercells that occur."""

    @property
    def supercell_of_row(self) -> NDArray[np.int64]:
        """(n,) index into them."""

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """The configurations."""


def fingerprints(supercell: Supercell, configurations: Sequence[Configuration]) -> NDArray[np.uint64]:
    """(n,) uint64: the fingerprint of each configuration, which must be in canonical form; 3 us each."""
    host = supercell.host.name.encode()
    matrix = supercell.matrix.ravel().tolist()
    beginning = struct.pack(f"<I{len(host)}s9q", len(host), host, *matrix)
    hashed = [
        blake2b(beginning + _encoded(configuration), digest_size=_DIGEST_BYTES, person=_PERSON).digest()
        for configuration in configurations
    ]
    return np.frombuffer(b"".join(hashed), "<u8").astype(np.uint64)


def fingerprints_of_rows(rows: Placed) -> NDArray[np.uint64]:
    """(n,) uint64: the fingerprint of each row, in their order."""
    found = np.empty(len(rows.configurations), np.uint64)
    for number, supercell in enumerate(rows.supercells):
        chosen = np.flatnonzero(rows.supercell_of_row == number)
        found[chosen] = fingerprints(supercell, [rows.configurations[i] for i in chosen])
    return found


def folds_of_rows(rows: Placed) -> NDArray[np.int64]:
    """(n,) int64 from 0 to 2^31 - 1: number of each row, of which members take turns to leave rows out.

    A configuration keeps it for ever; models in use have left their rows out by it.
    """
    return (fingerprints_of_rows(rows) % _FOLDS).astype(np.int64)


def _encoded(configuration: Configuration) -> bytes:
    n_defects = configuration.n_defects
    return struct.pack(f"<I{2 * n_defects}i", n_defects, *configuration.sites, *configuration.defect_types)
