"""Configurations that were never calculated, labelled for a network to learn from.

Three hundred results in a supercell are few for a network and enough for a kernel regression, which in turn is far
too slow to score 10^8 candidates. So random configurations like those of the training rows are labelled by the
regression (`screening.learning.environment_kernel`), mixed with what the network knows itself, and become training rows
of the network (distillation: Hinton et al., arXiv:1503.02531 (2015)). Each member of the ensemble has a teacher of its
own, which like the member has not seen the rows of its fold, so that the errors of left-out rows stay honest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.environment_kernel import (
    FEWEST_ROWS,
    MOST_ROWS,
    Lesson,
    fit_environment_kernels,
    predict_all,
)
from screening.learning.graph import pair_table
from screening.learning.pair_columns import pair_columns
from screening.learning.references import output_labels
from screening.learning.relatives import RelativeRows, rows_of_relatives

DRAWN_PER_RESULT = 20
MOST_FOREIGN = 400  # results of relatives
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


def draw_rows(rows: LabelledRows, *, n_drawn: int, seed: int) -> list[Drawn]:
    """Draw configurations like those of each group that has few results, in every lattice with enough of them.

    Args:
        rows: of one host; validation rows are not looked at.
        n_drawn: how many configurations in all, but at most twenty like each result.
    """
    rng = np.random.default_rng(seed)
    places = []
    for lattice, chosen in _taught_lattices(rows):
        for group in np.unique(rows.group_of_row[chosen]).tolist():
            of_group = chosen[rows.group_of_row[chosen] == group]
            if len(of_group) <= MOST_ROWS:
                places.append((lattice, group, of_group))
    drawn = []
    for lattice, group, chosen in places:
        supercell, like = rows.supercells[lattice[0]], [rows.configurations[row] for row in chosen]
        n = min(n_drawn // len(places), DRAWN_PER_RESULT * len(chosen))
        drawn.append(Drawn(supercell, group, tuple(draw_alike(supercell, like, n, rng))))
    return drawn


def label_drawn(
    rows: LabelledRows,
    outputs: Sequence[str],
    drawn: Sequence[Drawn],
    *,
    n_members: int,
    others: LabelledRows,
    seed: int,
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """What the teacher of each member says.

    Args:
        rows: as for `draw_rows`, like the seed.
        outputs: what to label; the energy per defect.
        drawn: what that has drawn.
        others: rows of all hosts; those of a relative teach too.

    Returns:
        For each part of the drawn configurations (n_members, n_configurations, n_outputs); and (n, n_outputs)
        of the training rows by a teacher that has not learnt from them; NaN where there is none, or it was not asked.
    """
    rng = np.random.default_rng(seed)
    taught: dict[int, NDArray[np.float64]] = {}
    labels = output_labels(rows, outputs)
    left_out = np.full(labels.shape, np.nan)
    for lattice, chosen in _taught_lattices(rows):
        parts = [number for number, part in enumerate(drawn) if part.supercell == rows.supercells[lattice[0]]]
        if not parts:
            continue
        learnt = chosen[_balanced(rows.group_of_row[chosen], rng)]
        configurations = [rows.configurations[row] for row in learnt]
        codes = sorted({code for row in chosen for code in rows.configurations[row].defect_types})
        fold, columns = rows.fold[learnt] % n_members, pair_columns(rows.supercells[lattice[0]], codes)
        is_like = np.isin(rows.group_of_row[learnt], [drawn[number].group for number in parts])
        lesson = Lesson(configurations, labels[learnt], fold, is_like)
        foreign = rows_of_relatives(others, rows.supercells[lattice[0]], codes=codes, outputs=outputs)
        lesson = _with_foreign(lesson, _alike(foreign, rows.n_defects[learnt][is_like]))
        kernels = fit_environment_kernels(columns, lesson, n_members=n_members)
        if any(kernel is not None for kernel in kernels):
            left_out[learnt] = predict_all(columns, kernels, configurations)[fold, np.arange(len(learnt))]
        for number in parts:
            taught[number] = predict_all(columns, kernels, drawn[number].configurations)
    return [taught[number] for number in range(len(drawn))], left_out


def _alike(foreign: RelativeRows, n_defects: NDArray[np.int64]) -> RelativeRows:
    """Those with numbers of defects that occur here, few enough for a regression; none if they are too few."""
    sizes = np.array([configuration.n_defects for configuration in foreign.configurations], np.int64)
    alike = np.flatnonzero(np.isin(sizes, n_defects))
    alike = np.sort(alike[np.argsort(foreign.fold[alike], kind="stable")[:MOST_FOREIGN]])
    return foreign.chosen(alike if len(alike) >= FEWEST_ROWS else alike[:0])


def _with_foreign(lesson: Lesson, foreign: RelativeRows) -> Lesson:
    n_foreign = len(foreign.configurations)
    return Lesson(
        [*lesson.configurations, *foreign.configurations],
        np.concatenate([lesson.labels, foreign.labels]),
        np.concatenate([lesson.folds, np.zeros(n_foreign, np.int64)]),
        np.concatenate([lesson.is_like, np.ones(n_foreign, np.bool_)]),
        n_foreign,
    )


def shares_of_teacher(
    labels: NDArray[np.float64], of_network: NDArray[np.float64], of_teacher: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n_properties,) from 0 to 1: the share of a teacher in the mixture with a network that errs least.

    Least squares on rows that neither has learnt from (stacking: Breiman, Machine Learning 24, 49 (1996)); 0 where
    they cannot be compared.

    Args:
        labels: (n, n_properties), like the other two; NaN where unknown.
    """
    known = np.isfinite(labels) & np.isfinite(of_network) & np.isfinite(of_teacher)
    apart = np.where(known, of_teacher - of_network, 0.0)
    missing = np.where(known, labels - of_network, 0.0)
    square = (apart**2).sum(axis=0)
    shares: NDArray[np.float64] = np.clip((apart * missing).sum(axis=0) / np.where(square > 0, square, 1.0), 0.0, 1.0)
    return shares


def _taught_lattices(rows: LabelledRows) -> list[tuple[list[int], NDArray[np.int64]]]:
    """Lattices with enough training rows, and these rows."""
    found = (
        (lattice, np.flatnonzero(~rows.is_validation & np.isin(rows.supercell_of_row, lattice)))
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
