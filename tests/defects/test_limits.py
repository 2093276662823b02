"""Limits of search spaces, against all labelled configurations of small supercells."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, parse_composition, parse_defect_types
from screening.defects.enumeration import SearchSpace, canonical_form, enumerate_space
from screening.defects.host import Supercell
from screening.defects.limits import Limits, allowed_pairs, parse_limits
from screening.defects.symmetry import find_symmetry
from screening.errors import InputError

Row = tuple[tuple[int, ...], tuple[int, ...]]


def distances(supercell: Supercell) -> NDArray[np.float64]:
    """Shortest distances over all images within two supercells, of layers."""
    between = supercell.positions[None] - supercell.positions[:, None]
    images = [i * supercell.lattice[0] + j * supercell.lattice[1] for i in range(-2, 3) for j in range(-2, 3)]
    return np.min([np.linalg.norm(between + image, axis=-1) for image in images], axis=0)


def labelled(space: SearchSpace) -> list[Row]:
    """Every assignment of types to sites that obeys the limits, by trying all."""
    apart = distances(space.supercell)
    low, high = space.limits.min_separation or 0.0, space.limits.max_separation or np.inf
    by_species = {s: [t.code for t in space.defect_types if t.removed == s] for s in space.supercell.species}
    found = []
    for n in range(space.min_defects, space.max_defects + 1):
        for sites in itertools.combinations(range(space.supercell.n_sites), n):
            pairs = [apart[pair] for pair in itertools.combinations(sites, 2)]
            if pairs and not low - 1e-3 <= min(pairs) <= max(pairs) <= high + 1e-3:
                continue
            for codes in itertools.product(*(by_species[space.supercell.species[site]] for site in sites)):
                counts = Counter(codes)
                if all(
                    least <= counts[t.code] <= (n if largest is None else largest)
                    for t, (least, largest) in space.limits.counts.items()
                ):
                    found.append((sites, codes))
    return found


CASES = [
    ("MoS2", "3x3", "v_S,Se_S,W_Mo", 3, ["v_S:0-1"], [], None, None),
    ("MoS2", "3x3", "v_S,Se_S,W_Mo", 3, ["Se_S:1-2"], ["W_Mo"], None, None),
    ("MoS2", "3x3", "v_S,Se_S,W_Mo", 3, [], [], 3.19, None),
    ("MoS2", "3x3", "v_S,Se_S,W_Mo", 3, [], [], None, 3.2),
    ("MoS2", "2x4", "v_S,v_Mo", 4, ["v_S:1-3"], ["v_Mo"], 2.5, 6.0),
    ("h-BN", "4x4", "v_B,C_N", 4, [], [], 2.0, 4.0),
    ("BP", "2x3", "v_P,N_P", 4, ["N_P:0-2"], [], 3.0, None),
]


@pytest.mark.parametrize(("host", "text", "types", "n", "limits", "required", "low", "high"), CASES)
def test_a_limited_space_has_one_row_for_each_orbit_of_labelled_configurations(
    host: str, text: str, types: str, n: int, limits: list[str], required: list[str], low: float, high: float
) -> None:
    supercell = Supercell.parse(catalogue_host(host), text)
    given = Limits(parse_limits(limits, required), low, high)
    space = SearchSpace(supercell, parse_defect_types(types), n, limits=given)
    symmetry = find_symmetry(supercell)
    expected = labelled(space)
    orbits = Counter(canonical_form(symmetry, Configuration(*row))[0] for row in expected)
    found = {}
    for block in enumerate_space(space, symmetry):
        for sites, codes, multiplicity in zip(block.sites, block.defect_types, block.multiplicity, strict=True):
            row = Configuration(tuple(sites.tolist()), tuple(codes.tolist()))
            assert row not in found
            found[row] = int(multiplicity)
    assert found == dict(orbits)  # every orbit once, with as many labelled configurations as its multiplicity says
    assert len(found) > 10
    by_composition = Counter(row.composition for row in found)
    assert {space.label(c): count for c, count in space.counts(symmetry).items()} == dict(by_composition)


def test_limits_that_allow_everything_change_nothing() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    symmetry = find_symmetry(supercell)
    types = parse_defect_types("v_S,Se_S,v_Mo")
    free = SearchSpace(supercell, types, 3)
    wide = SearchSpace(supercell, types, 3, limits=Limits(parse_limits(["v_S:0-3"]), 0.1, 100.0))
    assert wide.counts(symmetry) == {c: n for c, n in free.counts(symmetry).items() if sum(c)}
    assert allowed_pairs(supercell, symmetry, free.limits).size == 0
    assert allowed_pairs(supercell, symmetry, wide.limits)[np.triu_indices(supercell.n_sites, 1)].all()


def test_allowed_pairs_are_the_same_for_every_image() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "5x5")
    symmetry = find_symmetry(supercell)
    allowed = allowed_pairs(supercell, symmetry, Limits(min_separation=3.0, max_separation=6.4))
    assert 0 < allowed.sum() < allowed.size
    for permutation in symmetry.permutations:
        assert np.array_equal(allowed[np.ix_(permutation, permutation)], allowed)


def test_a_space_with_separations_and_a_composition_counts_that_composition() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    symmetry = find_symmetry(supercell)
    types = parse_defect_types("v_S,Se_S,v_Mo")
    limits = Limits(min_separation=3.5)
    whole = SearchSpace(supercell, types, 3, limits=limits)
    part = SearchSpace(supercell, types, 3, composition=parse_composition("v_S:2,v_Mo:1"), limits=limits)
    (wanted,) = part.counts(symmetry).items()
    assert whole.counts(symmetry)[wanted[0]] == wanted[1] == sum(len(b) for b in enumerate_space(part, symmetry))


def test_limits_are_read() -> None:
    v_s, se_s, w_mo = parse_defect_types("v_S,Se_S,W_Mo")
    assert parse_limits(["v_S:0-2, Se_S:1-3"], ["W_Mo,v_S"]) == {v_s: (1, 2), se_s: (1, 3), w_mo: (1, None)}
    assert parse_limits([]) == {}


@pytest.mark.parametrize("text", ["v_S", "v_S:2", "v_S:0-", "v_S:-1-2", "v_S=0-2", "v_S:0-2,"])
def test_a_limit_that_cannot_be_read_says_how_to_write_it(text: str) -> None:
    with pytest.raises(InputError, match="write v_S:0-2"):
        parse_limits([text])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"counts": parse_limits(["v_S:0-1"]), "composition": "v_S:1"}, "a composition fixes the number"),
        ({"counts": parse_limits(["v_Mo:0-1"])}, "names v_Mo, which is not among"),
        (
            {"counts": parse_limits(["v_S:3-3", "Se_S:0-1"])},
            "ask for 3 to 3 defects; the search space goes from 1 to 2",
        ),
        ({"counts": parse_limits(["v_S:0-0", "Se_S:0-0"])}, "ask for 0 to 0 defects"),
        ({"counts": parse_limits(["v_S:2-1"])}, "limited to 2-1"),
        ({"min_separation": 0.0}, "minimum separation is 0.0 angstrom; expected a finite number above 0"),
        ({"max_separation": float("nan")}, "maximum separation is nan"),
        ({"min_separation": 4.0, "max_separation": 3.0}, "no pair of defects obeys both"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, object], message: str) -> None:
    composition = limits.pop("composition", None)
    supercell = Supercell.parse(catalogue_host("MoS2"), "2x2")
    with pytest.raises(InputError, match=message):
        SearchSpace(
            supercell, parse_defect_types("v_S,Se_S"), 2,
            composition=parse_composition(str(composition)) if composition else None,
            limits=Limits(**limits),  # type: ignore[arg-type]
        )  # fmt: skip


def test_a_type_that_is_limited_twice_is_refused() -> None:
    with pytest.raises(InputError, match="v_S is limited twice"):
        parse_limits(["v_S:0-1", "v_S:0-2"])


def test_too_many_defects_with_separations_are_refused_with_what_to_do() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    space = SearchSpace(supercell, parse_defect_types("v_S"), 24, limits=Limits(min_separation=4.0))
    with pytest.raises(InputError, match=r"expected at most 10: .*--sample"):
        space.counts(find_symmetry(supercell))
