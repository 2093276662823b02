"""Configurations that were never calculated, labelled for a network to learn from.

Three hundred results in a supercell are few for a network and enough for a kernel regression, which in turn is far
too slow to score 10^8 candidates. So random configurations like those of the training rows are labelled by the
regression (`screening.learning.environment_kernel`) and become training rows of the network (distillation: Hinton et
al., arXiv:1503.02531 (2015)). Each member of the ensemble has a teacher of its own, which like the member has not seen
the rows of its fold, so that the errors of left-out rows stay honest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.environment_kernel import FEWEST_ROWS, MOST_ROWS, fit_environment_kernel
from screening.learning.graph import pair_table
from screening.learning.pair_columns import pair_columns

DRAWN_PER_RESULT = 20
_ALIKE = 1e-2  # features of pairs; cells of one host whose heights differ have the same pairs


@dataclass(frozen=True, eq=False)
class Drawn:
    """Configurations drawn like the training rows of one group in one lattice.

    Attributes:
        supercell: whose sites the configurations number.
        group: that of the rows they are like.
        configurations: they.
    """

    supercell: Supercell
    group: int
    configurations: tuple[Configuration, ...]


def draw_rows(rows: LabelledRows, energies: NDArray[np.float64], *, n_drawn: int, seed: int) -> list[Drawn]:
    """Draw configurations like those of each group that has few results, in every lattice with enough of them.

    Args:
        rows: of one host; validation rows are not looked at.
        energies: (n,) energy per defect of each row, NaN where it is unknown.
        n_drawn: how many configurations in all, but at most twenty like each result.
    """
    rng = np.random.default_rng(seed)
    places = []
    for lattice, chosen in _taught_lattices(rows, energies):
        for group in np.unique(rows.group_of_row[chosen]).tolist():
            of_group = chosen[rows.group_of_row[chosen] == group]
            if len(of_group) <= MOST_ROWS:
                places.append((lattice, group, of_group))
    drawn = []
    for lattice, group, chosen in places:
        like = [rows.configurations[row] for row in chosen]
        n = min(n_drawn // len(places), DRAWN_PER_RESULT * len(chosen))
        drawn.append(
            Drawn(rows.supercells[lattice[0]], group, tuple(draw_alike(rows.supercells[lattice[0]], like, n, rng)))
        )
    return drawn


def label_energies(
    rows: LabelledRows, energies: NDArray[np.float64], drawn: Sequence[Drawn], *, n_members: int, seed: int
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Energies per defect by the teacher of each member, eV.

    Args:
        rows: as for `draw_rows`, like energies and seed.
        drawn: what that has drawn.

    Returns:
        For each part of the drawn configurations (n_members, n_configurations); and (n,) what is said of the training
        rows by a teacher that has not learnt from them, NaN where that was not asked.
    """
    rng = np.random.default_rng(seed)
    labels: dict[int, NDArray[np.float64]] = {}
    left_out = np.full(len(energies), np.nan)
    for lattice, chosen in _taught_lattices(rows, energies):
        supercell = rows.supercells[lattice[0]]
        learnt = chosen[_balanced(rows.group_of_row[chosen], rng)]
        configurations = [rows.configurations[row] for row in learnt]
        codes = sorted({code for row in chosen for code in rows.configurations[row].defect_types})
        fold = rows.fold[learnt] % n_members
        teacher = fit_environment_kernel(
            pair_columns(supercell, codes), configurations, energies[learnt], fold, n_members=n_members
        )
        left_out[learnt] = teacher.predict(configurations)[fold, np.arange(len(learnt))]
        for number, part in enumerate(drawn):
            if part.supercell == supercell:
                labels[number] = teacher.predict(part.configurations)
    return [labels[number] for number in range(len(drawn))], left_out


def _taught_lattices(rows: LabelledRows, energies: NDArray[np.float64]) -> list[tuple[list[int], NDArray[np.int64]]]:
    """Lattices with enough training rows of known energy, and these rows."""
    known = np.isfinite(energies) & ~rows.is_validation
    found = (
        (lattice, np.flatnonzero(known & np.isin(rows.supercell_of_row, lattice)))
        for lattice in lattices_of(rows.supercells)
    )
    return [(lattice, chosen) for lattice, chosen in found if len(chosen) >= FEWEST_ROWS]


def lattices_of(supercells: Sequence[Supercell]) -> list[list[int]]:
    """Numbers of the supercells whose sites and pairs mean the same, grouped."""
    groups: list[list[int]] = []
    for number, supercell in enumerate(supercells):
        for group in groups:
            if _number_alike(supercells[group[0]], supercell):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def draw_alike(
    supercell: Supercell, configurations: Sequence[Configuration], n: int, rng: np.random.Generator
) -> list[Configuration]:
    """Random configurations with the numbers of defects and the compositions of given ones.

    Half have the defect types of a given configuration, half as many, drawn from those of two; the sites are random.

    Args:
        configurations: of this supercell, none pristine.
    """
    species = np.array([atomic_number(symbol) for symbol in supercell.species])
    sites_of = {z: np.flatnonzero(species == z) for z in np.unique(species).tolist()}
    drawn: list[Configuration] = []
    while len(drawn) < n:
        first, second = (configurations[int(rng.integers(len(configurations)))] for _ in range(2))
        pool = np.array(first.defect_types + (second.defect_types if rng.random() < 0.5 else ()))
        codes = rng.permutation(pool)[: first.n_defects]
        numbers = {z: codes[codes // 128 == z] for z in np.unique(codes // 128).tolist()}
        if any(len(of_species) > len(sites_of[z]) for z, of_species in numbers.items()):
            continue
        sites = np.concatenate([rng.choice(sites_of[z], len(c), replace=False) for z, c in numbers.items()])
        types, order = np.concatenate(list(numbers.values())), np.argsort(sites)
        drawn.append(Configuration(tuple(sites[order].tolist()), tuple(types[order].tolist())))
    return drawn


def _balanced(group_of_row: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of at most `MOST_ROWS` rows, as many of each group as it has and others leave room for."""
    groups = [rng.permutation(np.flatnonzero(group_of_row == group)) for group in np.unique(group_of_row)]
    chosen: list[NDArray[np.int64]] = []
    room = MOST_ROWS
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        chosen.append(group[: room // left])
        room -= len(chosen[-1])
    return np.sort(np.concatenate(chosen))


def _number_alike(a: Supercell, b: Supercell) -> bool:
    """Whether sites and pairs of two supercells of one host mean the same."""
    if a.host.name != b.host.name or a.species != b.species or not np.array_equal(a.matrix, b.matrix):
        return False
    first, second = pair_table(a), pair_table(b)
    return (
        first.features.shape == second.features.shape
        and bool((first.number == second.number).all())
        and bool((first.features - second.features).abs().max() < _ALIKE)
    )
