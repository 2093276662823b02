"""Random configurations: uniform over the distinct ones, reproducible, and large spaces."""

from __future__ import annotations

import random
import time
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, parse_composition, parse_defect_types
from screening.defects.enumeration import SearchSpace, canonical_form, enumerate_space
from screening.defects.host import Supercell
from screening.defects.limits import Limits, parse_limits
from screening.defects.sampling import Sampler
from screening.defects.symmetry import find_symmetry
from screening.errors import InputError


def space_of(name: str, text: str, types: str, max_defects: int, **options: object) -> SearchSpace:
    return SearchSpace(
        Supercell.parse(catalogue_host(name), text),
        parse_defect_types(types),
        max_defects,
        **options,  # type: ignore[arg-type]
    )


def every_one(space: SearchSpace) -> set[Configuration]:
    return {
        Configuration(tuple(sites.tolist()), tuple(codes.tolist()))
        for block in enumerate_space(space, find_symmetry(space.supercell))
        for sites, codes in zip(block.sites, block.defect_types, strict=True)
    }


@pytest.mark.parametrize(
    ("name", "text", "types", "max_defects", "options"),
    [
        ("MoS2", "3x3", "v_S,Se_S,v_Mo", 2, {}),  # orbits of 1, 9, 18, ... members
        ("h-BN", "3x3", "v_B,C_N", 3, {"min_defects": 3}),
        ("MoS2", "2x2", "v_S,Se_S,W_Mo", 4, {"composition": parse_composition("v_S:2,Se_S:1,W_Mo:1")}),
        ("MoS2", "4x4", "v_S,v_Mo", 3, {"limits": Limits(parse_limits(["v_S:1-2"]), 3.0, 5.6)}),
    ],
)
def test_every_configuration_is_drawn_equally_often(
    name: str, text: str, types: str, max_defects: int, options: dict[str, object]
) -> None:
    space = space_of(name, text, types, max_defects, **options)
    expected = every_one(space)
    sampler = Sampler(space, find_symmetry(space.supercell))
    generator = random.Random(11)
    drawn = Counter(sampler.draw(generator).configuration for _ in range(60 * len(expected)))
    assert set(drawn) == expected
    assert len(expected) > 5
    assert chisquare(list(drawn.values())).pvalue > 1e-3


def test_the_test_of_equal_frequencies_notices_labelled_drawing() -> None:
    space = space_of("MoS2", "3x3", "v_S,Se_S,v_Mo", 2, min_defects=2)
    symmetry = find_symmetry(space.supercell)
    expected = every_one(space)
    generator = np.random.default_rng(11)
    codes = {s: [t.code for t in space.defect_types if t.removed == s] for s in ("Mo", "S")}
    drawn: Counter[Configuration] = Counter()
    for _ in range(60 * len(expected)):
        sites = np.sort(generator.choice(space.supercell.n_sites, 2, replace=False)).tolist()
        chosen = tuple(int(generator.choice(codes[space.supercell.species[site]])) for site in sites)
        drawn[canonical_form(symmetry, Configuration(tuple(sites), chosen))[0]] += 1
    assert chisquare([drawn[row] for row in sorted(expected, key=str)]).pvalue < 1e-6


def test_multiplicities_of_a_sample_are_those_of_the_canonical_form() -> None:
    space = space_of("MoS2", "4x4", "v_S,Se_S,v_Mo", 4)
    symmetry = find_symmetry(space.supercell)
    sampler = Sampler(space, symmetry)
    generator = random.Random(5)
    for _ in range(100):
        found = sampler.draw(generator)
        assert canonical_form(symmetry, found.configuration) == (found.configuration, found.multiplicity)


@pytest.mark.parametrize("max_defects", [2, 3])
def test_the_number_of_distinct_configurations_is_the_exact_count(max_defects: int) -> None:
    space = space_of("MoS2", "8x8", "v_S,Se_S,v_Mo,W_Mo", max_defects)
    symmetry = find_symmetry(space.supercell)
    assert Sampler(space, symmetry).n_distinct == sum(space.counts(symmetry).values())


def test_24_defects_in_192_sites_are_sampled() -> None:
    """The high-density part of 2DMD: 24 defects on the sites of 8x8 MoS2."""
    space = space_of("MoS2", "8x8", "v_S,Se_S,v_Mo,W_Mo", 24, min_defects=24)
    symmetry = find_symmetry(space.supercell)
    started = time.monotonic()
    sampler = Sampler(space, symmetry)
    found = list(sampler.draw_distinct(200, random.Random(1)))
    assert time.monotonic() - started < 60
    assert len({row.configuration for row in found}) == 200
    assert all(row.configuration.n_defects == 24 for row in found)
    # nearly all labelled configurations have no symmetry: their number over the order of the group
    labelled = 2**24 * np.prod([(192 - i) / (24 - i) for i in range(24)])
    assert sampler.n_distinct / (labelled / symmetry.n_operations) == pytest.approx(1.0, abs=1e-6)
    # types and sublattices occur as often as their labelled configurations: a third of the sites are Mo
    n_metal = np.array([sum(code > 42 * 128 - 1 for code in row.configuration.defect_types) for row in found])
    assert n_metal.mean() == pytest.approx(24 / 3, abs=4 * np.sqrt(24 * 2 / 9 / 200))


def test_a_seed_gives_its_sample_again() -> None:
    space = space_of("MoS2", "4x4", "v_S,Se_S", 6, min_defects=6)
    sampler = Sampler(space, find_symmetry(space.supercell))
    first, again, other = (list(sampler.draw_distinct(20, random.Random(seed))) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_sample_of_all_is_all() -> None:
    space = space_of("MoS2", "3x3", "v_S,v_Mo", 2)
    sampler = Sampler(space, find_symmetry(space.supercell))
    found = {row.configuration for row in sampler.draw_distinct(sampler.n_distinct, random.Random(0))}
    assert found == every_one(space)
    with pytest.raises(InputError, match="ask for fewer"):
        next(sampler.draw_distinct(sampler.n_distinct + 1, random.Random(0)))


def test_separations_that_nothing_obeys_end_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("screening.defects.sampling.MAX_REFUSED", 200)
    space = space_of("MoS2", "3x3", "v_S", 3, min_defects=3, limits=Limits(min_separation=50.0))
    sampler = Sampler(space, find_symmetry(space.supercell))
    with pytest.raises(InputError, match="loosen --min-separation"):
        sampler.draw(random.Random(0))


def test_more_defects_than_sites_are_refused() -> None:
    space = space_of("MoS2", "2x2", "v_Mo", 5, min_defects=5)
    with pytest.raises(InputError, match="more defects are asked for"):
        Sampler(space, find_symmetry(space.supercell))
