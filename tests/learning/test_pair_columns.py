"""Counting defects and pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.defects.symmetry import find_symmetry
from screening.errors import InputError, StructureError
from screening.learning.pair_columns import PairColumns, columns_of_rows, pair_columns, rows_of_group
from tests.learning.synthetic import labelled_rows

V_S, SE_S, V_MO = 16 * 128, 16 * 128 + 34, 42 * 128


@pytest.fixture(scope="module")
def columns() -> PairColumns:
    return pair_columns(Supercell.parse(catalogue_host("MoS2"), "4x4"), [SE_S, V_S, V_MO])


def pairs_of(columns: PairColumns, *defects: tuple[int, int]) -> np.ndarray:
    """(n_pairs,): pairs of one configuration given as (site, code)."""
    sites, codes = np.array(defects, np.int16).T
    return np.asarray(columns.counts(sites[None], codes[None])[1][0])


@pytest.mark.parametrize("host", ["MoS2", "h-BN", "BP"])
def test_two_pairs_have_one_column_exactly_when_a_symmetry_maps_one_onto_the_other(host: str) -> None:
    supercell = Supercell.parse(catalogue_host(host), "4x4")
    symbol = supercell.species[-1]
    found = pair_columns(supercell, [code := {"S": 16, "N": 7, "P": 15}[symbol] * 128])
    sites = [site for site, species in enumerate(supercell.species) if species == symbol]
    column_of = {(i, j): int(np.argmax(pairs_of(found, (i, code), (j, code)))) for i in sites for j in sites if i < j}
    orbits: dict[tuple[int, int], frozenset[tuple[int, int]]] = {}
    permutations = find_symmetry(supercell).permutations
    for i, j in column_of:
        images = np.sort(permutations[:, [i, j]], axis=1)
        orbits[i, j] = frozenset(map(tuple, images.tolist()))
    n_orbits = len(set(orbits.values()))
    assert n_orbits == found.n_pairs == len({(orbits[pair], column) for pair, column in column_of.items()})


def test_a_pair_and_its_reverse_are_one_pair(columns: PairColumns) -> None:
    metal = columns.supercell.species.index("Mo")
    sulphur = columns.supercell.species.index("S")
    one = pairs_of(columns, (metal, V_MO), (sulphur, SE_S))
    np.testing.assert_array_equal(one, pairs_of(columns, (sulphur, SE_S), (metal, V_MO)))
    assert one.sum() == 1


def test_counts_are_those_of_a_plain_loop_over_types_and_distances(columns: PairColumns) -> None:
    rng = np.random.default_rng(3)
    supercell = columns.supercell
    sites = np.array([np.sort(rng.choice(supercell.n_sites, 7, replace=False)) for _ in range(40)], np.int16)
    codes = np.array(
        [[V_MO if supercell.species[s] == "Mo" else rng.choice([V_S, SE_S]) for s in row] for row in sites], np.int16
    )
    types, pairs = columns.counts(sites, codes)
    for row in range(len(sites)):
        assert Counter(codes[row].tolist()) == {c: n for c, n in zip(columns.codes, types[row], strict=True) if n}
        i, j = np.triu_indices(7, 1)
        expected = Counter(supercell.pair_distances[sites[row, i], sites[row, j]].round(3).tolist())
        found: Counter[float] = Counter()
        for distance, n in zip(columns.distances.round(3).tolist(), pairs[row].tolist(), strict=True):
            found[distance] += int(n)
        assert found - Counter() == expected


def test_configurations_of_several_sizes_keep_their_order(columns: PairColumns) -> None:
    metal = columns.supercell.species.index("Mo")
    first_s = columns.supercell.species.index("S")
    configurations = [
        Configuration(tuple(sorted((metal, first_s))), (V_MO, V_S) if metal < first_s else (V_S, V_MO)),
        Configuration((first_s,), (SE_S,)),
        Configuration((first_s, first_s + 1), (V_S, V_S)),
    ]
    types, pairs = columns.counts_of(configurations)
    np.testing.assert_array_equal(types, [[1, 0, 1], [0, 1, 0], [2, 0, 0]])
    np.testing.assert_array_equal(pairs.sum(axis=1), [1, 0, 1])


def test_the_pristine_supercell_is_refused(columns: PairColumns) -> None:
    with pytest.raises(StructureError, match="configuration 0 has no defects"):
        columns.counts_of([Configuration((), ())])


def test_rows_of_two_supercells_are_refused_by_name() -> None:
    rows = labelled_rows(30)
    other = Supercell.parse(catalogue_host("MoS2"), "5x5")
    both = replace(rows, supercells=(rows.supercells[0], other), supercell_of_row=np.arange(30) % 2)
    with pytest.raises(InputError, match="MoS2 4x4, MoS2 5x5"):
        columns_of_rows(both)


def test_a_group_has_its_rows_in_their_order() -> None:
    rows = replace(labelled_rows(30), group_of_row=np.arange(30) % 2)
    found = rows_of_group(rows, 1)
    assert found.configurations == rows.configurations[1::2]
    np.testing.assert_array_equal(found.labels, rows.labels[1::2])
    np.testing.assert_array_equal(found.is_validation, rows.is_validation[1::2])
