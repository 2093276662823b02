"""Which integer combinations of one lattice's vectors give another lattice.

Two settings of a lattice, or a lattice and its superlattice, differ by an integer matrix and a rigid rotation,
and a rotation leaves the metric (lengths and angles) alone. So all integer vectors whose length is that of a
target vector are listed, and combined where their angles agree too; a small strain is allowed, because cells
are relaxed and functionals differ by a per cent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.errors import LatticeError

MAX_STRAIN = 0.03  # MoS2 and WSe2 differ by 0.043, functionals and relaxation by 0.01
_MAX_VECTORS = 5_000_000


@dataclass(frozen=True, eq=False)
class LatticeMap:
    """An integer matrix that takes one lattice to another.

    Attributes:
        matrix: (k, k) int64; ``matrix @ source`` has the metric of the target.
        strain: the largest relative change of length in any direction.
    """

    matrix: NDArray[np.int64]
    strain: float


def lattice_maps(source: NDArray[np.float64], target: NDArray[np.float64]) -> list[LatticeMap]:
    """All integer matrices that take `source` to `target` up to rotation, least strain first.

    Args:
        source: (k, 3) float64, rows, angstrom; k = 2 for the in-plane vectors of a layer.
        target: (k, 3) float64.

    Raises:
        LatticeError: the target is so large against the source that the matrices cannot be listed.
    """
    metric, wanted = source @ source.T, target @ target.T
    lengths = np.sqrt(np.diag(wanted))
    vectors = _vectors_up_to(metric, float(lengths.max()) * (1 + MAX_STRAIN))
    found = np.sqrt(np.einsum("vi,ij,vj->v", vectors, metric, vectors))
    shells = [vectors[np.abs(found - length) <= MAX_STRAIN * length] for length in lengths]
    slack = 3 * MAX_STRAIN * np.outer(lengths, lengths)  # a bound; the strain below decides
    rows: list[tuple[NDArray[np.int64], ...]] = [(vector,) for vector in shells[0]]
    for k, shell in enumerate(shells[1:], start=1):
        grown: list[tuple[NDArray[np.int64], ...]] = []
        products = shell @ metric
        for chosen in rows:
            fits = np.ones(len(shell), bool)
            for i, vector in enumerate(chosen):
                fits &= np.abs(products @ vector - wanted[k, i]) <= slack[k, i]
            grown.extend((*chosen, vector) for vector in shell[fits])
        rows = grown
    maps = [LatticeMap(np.array(chosen), _strain(np.array(chosen), metric, wanted)) for chosen in rows]
    kept = [found for found in maps if found.strain <= MAX_STRAIN]
    return sorted(kept, key=_plainness)


def hermite_normal_form(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """The upper triangular matrix with the same row lattice: equal for two bases exactly if they span one lattice."""
    form = matrix.copy()
    n = len(form)
    for column in range(n):
        while np.any(form[column + 1 :, column]):
            nonzero = column + np.flatnonzero(form[column:, column])
            smallest = nonzero[np.argmin(np.abs(form[nonzero, column]))]
            form[[column, smallest]] = form[[smallest, column]]
            form[column + 1 :] -= np.outer(form[column + 1 :, column] // form[column, column], form[column])
        assert form[column, column] != 0, "the matrix is singular"
        form[column] *= np.sign(form[column, column])
        form[:column] -= np.outer(form[:column, column] // form[column, column], form[column])
    return form


def reduced_basis(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Minkowski-reduced basis of a lattice of two or three vectors, rows, angstrom.

    No vector gets shorter by adding or subtracting others; then a vector whose coefficients are rounded to at most
    a half has its shortest image at most one lattice vector away along each.
    """
    basis = vectors.copy()
    steps = [step for step in itertools.product((-1, 0, 1), repeat=len(basis)) if np.count_nonzero(step) > 1]
    shortened = True
    while shortened:
        shortened = False
        for step in steps:
            candidate = step @ basis
            longest = max(np.flatnonzero(step), key=lambda i: basis[i] @ basis[i])
            if candidate @ candidate < basis[longest] @ basis[longest] * (1 - 1e-9):
                basis[longest] = candidate
                shortened = True
    return basis


def plane_frame(lattice: NDArray[np.float64], axis: int = 2) -> NDArray[np.float64]:
    """(3, 3) float64: the two lattice vectors other than `axis`, and the unit vector perpendicular to them."""
    first, second = (lattice[i] for i in range(3) if i != axis)
    normal = np.cross(first, second)
    return np.array([first, second, normal / np.linalg.norm(normal)])


def describe_lattice(vectors: NDArray[np.float64]) -> str:
    """Lengths and angles: `25.52 x 25.52 A, 120.0 deg` for two vectors, three angles for three."""
    lengths = np.linalg.norm(vectors, axis=1)
    pairs = [(0, 1)] if len(vectors) == 2 else [(1, 2), (0, 2), (0, 1)]
    angles = [
        np.degrees(np.arccos(np.clip(vectors[i] @ vectors[j] / lengths[i] / lengths[j], -1, 1))) for i, j in pairs
    ]
    return " x ".join(f"{x:.2f}" for x in lengths) + " A, " + " ".join(f"{x:.1f}" for x in angles) + " deg"


def _vectors_up_to(metric: NDArray[np.float64], radius: float) -> NDArray[np.int64]:
    """(n, k) int64: all integer vectors in the box around the ellipsoid of this radius."""
    reach = np.floor(radius * np.sqrt(np.diag(np.linalg.inv(metric))) + 1e-9).astype(int)
    if np.prod(2.0 * reach + 1) > _MAX_VECTORS:
        raise LatticeError(
            f"the lattice has vectors of up to {radius:.1f} A, {reach.max()} times those of the host's cell; "
            "expected a supercell of at most about a hundred repeats: check the units of the cell"
        )
    axes = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, len(reach))


def _plainness(found: LatticeMap) -> tuple[float, int, int, tuple[int, ...]]:
    """Sort key: least strain, then diagonal matrices, then positive ones."""
    diagonal = np.diag(found.matrix)
    off_diagonal = int(np.abs(found.matrix - np.diag(diagonal)).sum())
    return round(found.strain, 6), off_diagonal, -int(diagonal.sum()), tuple(found.matrix.ravel().tolist())


def _strain(matrix: NDArray[np.int64], metric: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Largest relative change of length between the lattice that the matrix gives and the wanted one."""
    inverse = np.linalg.inv(np.linalg.cholesky(wanted))
    stretches = np.linalg.eigvalsh(inverse @ (matrix @ metric @ matrix.T) @ inverse.T)
    return float(np.abs(np.sqrt(np.maximum(stretches, 0.0)) - 1.0).max())
