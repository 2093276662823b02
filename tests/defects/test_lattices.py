import itertools

import numpy as np
import pytest

from screening.defects.lattices import (
    describe_lattice,
    hermite_normal_form,
    lattice_maps,
    plane_frame,
    reduced_basis,
)
from screening.errors import LatticeError

HEXAGONAL = np.array([[3.0, 0.0, 0.0], [-1.5, 1.5 * 3**0.5, 0.0]])


def turned(vectors: np.ndarray, seed: int) -> np.ndarray:
    return vectors @ np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


@pytest.mark.parametrize(
    ("lattice", "n_maps"),
    [
        (HEXAGONAL, 12),
        (np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), 8),
        (np.array([[3.0, 0.0, 0.0], [0.0, 4.6, 0.0]]), 4),
        (np.array([[3.0, 0.0, 0.0], [1.0, 4.0, 0.0]]), 2),
        (np.eye(3) * 4.0, 48),
        (np.diag([3.0, 3.0, 5.0]), 16),
    ],
)
def test_maps_of_a_lattice_to_itself_are_its_point_group(lattice: np.ndarray, n_maps: int) -> None:
    maps = lattice_maps(turned(lattice, 1), lattice)
    assert len(maps) == n_maps
    assert maps[0].matrix.tolist() == np.eye(len(lattice)).tolist()
    assert all(abs(round(np.linalg.det(found.matrix))) == 1 and found.strain < 1e-6 for found in maps)


@pytest.mark.parametrize("repeats", [[[8, 0], [0, 8]], [[2, 1], [-1, 1]], [[5, 7], [2, 6]]])
def test_maps_to_a_superlattice_give_its_metric(repeats: list[list[int]]) -> None:
    target = turned(np.array(repeats) @ HEXAGONAL, 2)
    maps = lattice_maps(HEXAGONAL, target)
    assert repeats in [found.matrix.tolist() for found in maps]
    for found in (found for found in maps if found.strain < 1e-6):
        vectors = found.matrix @ HEXAGONAL
        assert vectors @ vectors.T == pytest.approx(target @ target.T, abs=1e-6)


@pytest.mark.parametrize(("strain", "n_maps"), [(0.02, 12), (-0.02, 12), (0.04, 0)])
def test_a_small_strain_is_allowed_and_reported(strain: float, n_maps: int) -> None:
    maps = lattice_maps(HEXAGONAL * (1 + strain), HEXAGONAL)
    assert len(maps) == n_maps
    assert all(found.strain == pytest.approx(abs(strain), abs=1e-9) for found in maps)


def test_a_supercell_beyond_all_measure_is_refused() -> None:
    with pytest.raises(LatticeError, match="check the units"):
        lattice_maps(np.eye(3), np.eye(3) * 1000.0)


def test_bases_of_one_lattice_have_one_hermite_normal_form() -> None:
    generator = np.random.default_rng(5)
    for _ in range(200):
        matrix = generator.integers(-6, 7, (3, 3))
        if round(np.linalg.det(matrix)) == 0:
            continue
        form = hermite_normal_form(matrix)
        lower = np.tril(form, -1)
        assert not lower.any()
        assert round(np.linalg.det(form)) == abs(round(np.linalg.det(matrix)))
        step = np.eye(3, dtype=np.int64)
        step[0, 1], step[2, 0] = generator.integers(-5, 6, 2)
        assert hermite_normal_form(step @ matrix).tolist() == form.tolist()
        coefficients = matrix @ np.linalg.inv(form)
        assert coefficients == pytest.approx(np.rint(coefficients), abs=1e-6)


@pytest.mark.parametrize("n_axes", [2, 3])
def test_no_combination_is_shorter_than_a_reduced_basis(n_axes: int) -> None:
    generator = np.random.default_rng(6)
    for _ in range(50):
        vectors = generator.normal(size=(n_axes, 3))
        skew = np.eye(n_axes)
        skew[-1, 0], skew[0, 1] = generator.integers(-20, 21, 2) if n_axes == 3 else (7, 0)
        basis = reduced_basis(skew @ vectors)
        gram = np.linalg.det(basis @ basis.T)
        assert gram == pytest.approx(np.linalg.det(vectors @ vectors.T))
        lengths = np.sort(np.linalg.norm(basis, axis=1))
        grid = np.array(list(itertools.product(range(-3, 4), repeat=n_axes)))
        shortest = np.sort(np.linalg.norm(grid @ basis, axis=1))[1]
        assert lengths[0] == pytest.approx(shortest)


def test_the_frame_of_a_plane_has_a_unit_normal() -> None:
    lattice = np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 20.0], [0.0, 4.0, 0.0]])
    frame = plane_frame(lattice, axis=1)
    assert frame[:2].tolist() == [[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]
    assert frame[2].tolist() == [0.0, 0.0, 1.0]


def test_lattices_are_described_by_lengths_and_angles() -> None:
    assert describe_lattice(HEXAGONAL) == "3.00 x 3.00 A, 120.0 deg"
    assert describe_lattice(np.diag([3.0, 4.0, 5.0])) == "3.00 x 4.00 x 5.00 A, 90.0 90.0 90.0 deg"
