import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, composition_label, parse_composition, parse_defect_types
from screening.defects.enumeration import (
    Block,
    Chunk,
    SearchSpace,
    canonical_form,
    check_count,
    enumerate_chunk,
    enumerate_space,
    plan_chunks,
    walk_rules,
)
from screening.defects.host import Host, Supercell
from screening.defects.limits import Limits, parse_limits
from screening.defects.orderly_walk import estimate_rows
from screening.defects.symmetry import Symmetry, find_symmetry
from screening.errors import CountMismatchError, InputError

PUBLISHED = [("MoS2_8x8", "MoS2", "8x8"), ("hBN_8x8", "h-BN", "8x8"), ("GaSe_6x6", "GaSe", "6x6")]


def space_of(name: str, text: str, types: str, max_defects: int, **limits: object) -> tuple[SearchSpace, Symmetry]:
    supercell = Supercell.parse(catalogue_host(name), text)
    space = SearchSpace(supercell, parse_defect_types(types), max_defects, **limits)  # type: ignore[arg-type]
    return space, find_symmetry(supercell)


def rows(blocks: list[Block]) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    return [
        (tuple(sites), tuple(codes), multiplicity)
        for block in blocks
        for sites, codes, multiplicity in zip(
            block.sites.tolist(), block.defect_types.tolist(), block.multiplicity.tolist(), strict=True
        )
    ]


def published(shared_data: Path, key: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((shared_data / "enumeration_counts.json").read_text())[key]
    return found


@pytest.mark.parametrize(("key", "name", "text"), PUBLISHED)
def test_counts_are_the_published_ones(shared_data: Path, key: str, name: str, text: str) -> None:
    expected = published(shared_data, key)
    space, symmetry = space_of(name, text, ",".join(expected["defect_types"]), 5)
    counts = space.counts(symmetry)
    totals = Counter({str(n): 0 for n in space.sizes})
    for composition, count in counts.items():
        totals[str(sum(composition))] += count
    assert dict(totals) == {n: count for n, count in expected["totals_by_number_of_defects"].items() if n != "0"}
    for n_defects, by_composition in expected["by_composition"].items():
        if n_defects != "0":
            size = int(n_defects)
            assert {space.label(c): n for c, n in counts.items() if sum(c) == size} == by_composition


@pytest.mark.parametrize(
    ("key", "name", "text", "max_defects"), [(*PUBLISHED[0], 4), (*PUBLISHED[1], 3), (*PUBLISHED[2], 3)]
)
def test_enumeration_gives_the_published_numbers(
    shared_data: Path, key: str, name: str, text: str, max_defects: int
) -> None:
    expected = published(shared_data, key)
    space, symmetry = space_of(name, text, ",".join(expected["defect_types"]), max_defects)
    found: dict[str, Counter[str]] = {str(n): Counter() for n in space.sizes}
    for block in enumerate_space(space, symmetry):
        n_defects = block.defect_types.shape[1]
        for codes, n_rows in zip(*np.unique(np.sort(block.defect_types), axis=0, return_counts=True), strict=True):
            found[str(n_defects)][composition_label(Counter(codes.tolist()))] += int(n_rows)
    for n_defects in found:
        assert found[n_defects] == expected["by_composition"][n_defects]


@pytest.mark.parametrize(
    ("name", "text", "types", "max_defects"),
    [("MoS2", "3x3", "v_S,Se_S,W_Mo", 4), ("BP", "2x3", "v_P,N_P", 4), ("h-BN", "4x4", "v_B,C_N", 3)],
)
def test_every_configuration_belongs_to_exactly_one_row(name: str, text: str, types: str, max_defects: int) -> None:
    space, symmetry = space_of(name, text, types, max_defects)
    found = rows(list(enumerate_space(space, symmetry)))
    assert len({row[:2] for row in found}) == len(found)
    for sites, codes, multiplicity in found:
        assert canonical_form(symmetry, Configuration(sites, codes)) == (Configuration(sites, codes), multiplicity)
    n_points = {t.code: len(space.supercell.allowed(t)) for t in space.defect_types}
    by_species = Counter[str]()
    for t in space.defect_types:
        by_species[t.removed] += 1
    for n_defects in space.sizes:  # multiplicities add up to all configurations: (1 + k x)^n per sublattice
        polynomial = np.ones(1)
        for t in {t.removed: t for t in space.defect_types}.values():
            for _ in range(n_points[t.code]):
                polynomial = np.convolve(polynomial, [1.0, by_species[t.removed]])
        assert sum(m for sites, _, m in found if len(sites) == n_defects) == polynomial[n_defects]


def test_orbits_whose_sites_are_numbered_between_those_of_another_are_met_once() -> None:
    cell = Supercell.parse(catalogue_host("h-BN"), "2x1")
    order = [cell.species.index("N"), *np.flatnonzero(np.array(cell.species) == "B"), cell.species.index("N") + 1]
    positions = (cell.positions @ np.linalg.inv(cell.lattice))[order]
    host = Host.from_cell("NBBN", cell.lattice, tuple(cell.species[i] for i in order), positions, source="reordered")
    space = SearchSpace(Supercell.parse(host, "2x3"), parse_defect_types("v_N,C_B,v_B"), 4)
    symmetry = find_symmetry(space.supercell)
    assert symmetry.representatives[-1] == 0 < symmetry.representatives[6]
    found = rows(list(enumerate_space(space, symmetry)))
    for sites, codes, multiplicity in found:
        assert canonical_form(symmetry, Configuration(sites, codes)) == (Configuration(sites, codes), multiplicity)


def test_symmetric_images_have_one_canonical_form() -> None:
    space, symmetry = space_of("MoS2", "8x8", "v_S,Se_S,v_Mo,W_Mo", 6)
    generator = np.random.default_rng(3)
    codes = {symbol: [t.code for t in space.defect_types if t.removed == symbol] for symbol in ("Mo", "S")}
    for _ in range(50):
        sites = np.sort(generator.choice(space.supercell.n_sites, 6, replace=False))
        chosen = [int(generator.choice(codes[space.supercell.species[site]])) for site in sites]
        image = symmetry.permutations[generator.integers(symmetry.n_operations)][sites]
        order = np.argsort(image)
        moved = Configuration(tuple(image[order].tolist()), tuple(chosen[i] for i in order))
        original = Configuration(tuple(sites.tolist()), tuple(chosen))
        assert canonical_form(symmetry, moved) == canonical_form(symmetry, original)


def test_canonical_form_is_the_smallest_of_all_images() -> None:
    space, symmetry = space_of("BP", "3x3", "v_P,N_P", 3)
    generator = np.random.default_rng(4)
    for _ in range(50):
        sites = np.sort(generator.choice(space.supercell.n_sites, 3, replace=False))
        codes = [int(generator.choice([t.code for t in space.defect_types])) for _ in sites]
        images = {
            tuple(sorted(zip(permutation[sites].tolist(), codes, strict=True))) for permutation in symmetry.permutations
        }
        smallest = min(images)
        form, multiplicity = canonical_form(symmetry, Configuration(tuple(sites.tolist()), tuple(codes)))
        assert tuple(zip(form.sites, form.defect_types, strict=True)) == smallest
        assert multiplicity == len(images)


def test_pristine_supercell_is_its_own_canonical_form() -> None:
    _, symmetry = space_of("MoS2", "2x2", "v_S", 1)
    assert canonical_form(symmetry, Configuration((), ())) == (Configuration((), ()), 1)


EMPTY = Configuration((), ())
PLANNED = [
    ("MoS2", "4x4", "v_S,W_Mo", 3, 20, {}),
    ("MoS2", "4x4", "v_S,Se_S,v_Mo", 4, 300, {"limits": Limits(parse_limits(["v_S:0-2"], ["v_Mo"]))}),
    ("MoS2", "4x4", "v_S,Se_S,v_Mo", 4, 100, {"composition": parse_composition("v_S:3,v_Mo:1")}),
    ("h-BN", "5x5", "v_B,C_N", 4, 50, {"limits": Limits(min_separation=2.0, max_separation=5.5)}),
    ("BP", "3x3", "v_P,N_P", 4, 7, {}),
    ("GaSe", "3x3", "v_Ga,v_Se,S_Se", 3, 1, {}),
]


@pytest.mark.parametrize(("name", "text", "types", "max_defects", "chunk_rows", "limits"), PLANNED)
def test_chunks_follow_one_another_as_the_walk_of_the_whole_space_does(
    name: str, text: str, types: str, max_defects: int, chunk_rows: int, limits: dict[str, object]
) -> None:
    space, symmetry = space_of(name, text, types, max_defects, **limits)
    chunks = plan_chunks(space, symmetry, rows=chunk_rows)
    assert chunks == plan_chunks(space, symmetry, rows=chunk_rows)
    assert len(chunks) > len(space.sizes)
    whole = [list(enumerate_chunk(space, symmetry, Chunk(n, EMPTY, EMPTY))) for n in space.sizes]
    cut = [list(enumerate_chunk(space, symmetry, chunk)) for chunk in chunks]
    assert rows(list(itertools.chain(*cut))) == rows(list(itertools.chain(*whole)))
    assert sum(space.counts(symmetry).values()) == sum(len(block) for blocks in whole for block in blocks)


def test_blocks_run_full_across_the_prefixes_of_a_chunk() -> None:
    space, symmetry = space_of("MoS2", "4x4", "v_S,W_Mo", 4, min_defects=4)
    chunks = plan_chunks(space, symmetry, rows=250)
    assert len(chunks) > 3
    for chunk in chunks:
        *full, last = (len(block) for block in enumerate_chunk(space, symmetry, chunk, block_rows=50))
        assert set(full) == {50}
        assert 0 < last <= 50


def test_chunks_are_of_about_the_asked_size() -> None:
    space, symmetry = space_of("MoS2", "8x8", "v_S,Se_S,v_Mo,W_Mo", 4, min_defects=4)
    sizes = [
        sum(len(block) for block in enumerate_chunk(space, symmetry, chunk))
        for chunk in plan_chunks(space, symmetry, rows=50_000)
    ]
    assert len(sizes) == 24
    assert sum(sizes) == 1_170_765
    assert 25_000 < min(sizes) <= max(sizes) < 75_000


@pytest.mark.parametrize(("types", "n_defects"), [("v_S,Se_S,v_Mo,W_Mo", 7), ("v_S,Se_S", 24)])
def test_a_space_of_any_size_has_a_bounded_plan(types: str, n_defects: int) -> None:
    space, symmetry = space_of("MoS2", "8x8", types, n_defects, min_defects=n_defects)
    chunks = plan_chunks(space, symmetry)
    assert 1000 < len(chunks) <= 200_000
    ends = [tuple(zip(end.sites, end.defect_types, strict=True)) for c in chunks for end in (c.first, c.last)]
    assert ends == sorted(ends)


def test_a_number_of_defects_that_the_separations_leave_empty_has_an_empty_chunk() -> None:
    space, symmetry = space_of("MoS2", "2x2", "v_S", 3, min_defects=3, limits=Limits(min_separation=6.0))
    (chunk,) = plan_chunks(space, symmetry)
    assert list(enumerate_chunk(space, symmetry, chunk)) == []


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_a_chunk_resumes_behind_any_row(block_rows: int) -> None:
    space, symmetry = space_of("MoS2", "4x4", "v_S,W_Mo", 3)
    whole = rows(list(enumerate_space(space, symmetry)))
    resumed = []
    chunks = plan_chunks(space, symmetry, rows=30)
    assert len(chunks) > 6
    for chunk in chunks:
        after = None
        while block := next(enumerate_chunk(space, symmetry, chunk, after=after, block_rows=block_rows), None):
            assert len(block) <= block_rows
            resumed.extend(rows([block]))
            after = block.configuration(-1)
    assert resumed == whole


def test_probes_estimate_the_rows_below_each_prefix() -> None:
    space, symmetry = space_of("MoS2", "4x4", "v_S,Se_S,W_Mo", 4, min_defects=4)
    (block,) = enumerate_chunk(space, symmetry, Chunk(4, EMPTY, EMPTY), block_rows=10**6)
    for n_prefix, tolerance in [(3, 0.0), (2, 0.1)]:  # one defect more is counted, two are estimated
        points = np.stack([block.sites, block.defect_types], axis=2)[:, :n_prefix].reshape(len(block), -1)
        prefixes, exact = np.unique(points, axis=0, return_counts=True)
        estimates = estimate_rows(
            prefixes[:, ::2], prefixes[:, 1::2], 4 - n_prefix, 3000, 1, walk_rules(space, symmetry)
        )  # fmt: skip
        assert np.all(np.abs(estimates - exact) <= 1e-9 + tolerance * exact)
        assert estimates.sum() == pytest.approx(exact.sum(), rel=0.01)


@pytest.mark.parametrize("composition", ["v_S:2,Se_S:1", "v_Mo:1", "W_Mo:3"])
def test_a_composition_is_the_part_of_the_space_that_has_it(composition: str) -> None:
    types = "v_S,Se_S,v_Mo,W_Mo"
    wanted = parse_composition(composition)
    n_defects = sum(wanted.values())
    part, symmetry = space_of("MoS2", "4x4", types, n_defects, composition=wanted)
    whole, _ = space_of("MoS2", "4x4", types, n_defects)
    counts = Counter({t.code: n for t, n in wanted.items()})
    expected = [row for row in rows(list(enumerate_space(whole, symmetry))) if Counter(row[1]) == counts]
    assert sorted(rows(list(enumerate_space(part, symmetry)))) == sorted(expected)
    assert list(part.counts(symmetry).values()) == [len(expected)]


def test_the_smallest_number_of_defects_is_kept() -> None:
    space, symmetry = space_of("MoS2", "3x3", "v_S", 3, min_defects=2)
    assert {block.sites.shape[1] for block in enumerate_space(space, symmetry)} == {2, 3}


@pytest.mark.parametrize(
    ("types", "max_defects", "limits", "message"),
    [
        ("v_Te", 1, {}, "no site of species 'Te'"),
        ("v_S", 0, {}, "expected a first number of at least 1"),
        ("v_S", 2, {"min_defects": 3}, "from 3 to 2"),
        ("v_S", 2, {"composition": parse_composition("v_Mo:1")}, "names v_Mo"),
        ("v_S", 2, {"composition": parse_composition("v_S:3")}, "has 3 defects"),
    ],
)
def test_impossible_spaces_are_refused(types: str, max_defects: int, limits: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        space_of("MoS2", "2x2", types, max_defects, **limits)


def test_a_search_space_without_types_is_refused() -> None:
    with pytest.raises(InputError, match="at least one defect type"):
        SearchSpace(Supercell.parse(catalogue_host("MoS2"), "2x2"), (), 1)


def test_a_number_that_differs_from_the_count_is_an_error() -> None:
    check_count(5, 5)
    with pytest.raises(CountMismatchError, match=r"enumerated 4 .* counts 5"):
        check_count(4, 5)
