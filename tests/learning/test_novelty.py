"""What is far from the training data, in words and as a factor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.novelty import Novelty, learn_novelty
from screening.learning.references import References, fit_references
from screening.learning.scorer import score_configurations

V_S, SE_S, V_MO = 16 * 128, 16 * 128 + 34, 42 * 128
W_MO = 42 * 128 + 74


@pytest.fixture(scope="module")
def supercell() -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), "8x8")


def rows_of(supercell: Supercell, configurations: list[Configuration]) -> LabelledRows:
    """Labels do not matter; one more row validates."""
    n = len(configurations)
    return LabelledRows(
        supercells=(supercell,),
        supercell_of_row=np.zeros(n + 1, np.int64),
        configurations=(*configurations, configurations[0]),
        properties=("formation_energy_per_site",),
        labels=np.arange(n + 1.0)[:, None],
        is_validation=np.arange(n + 1) == n,
        group_of_row=np.zeros(n + 1, np.int64),
    )


def placed(supercell: Supercell, codes: list[int], *, apart: float = 6.0) -> Configuration:
    """Defects of these types, each at least so far from the others."""
    sites: dict[int, int] = {}
    species = {16: "S", 42: "Mo"}
    for code in codes:
        site = next(
            site
            for site in range(supercell.n_sites)
            if supercell.species[site] == species[code // 128]
            and all(supercell.pair_distances[site, other] >= apart for other in sites)
        )
        sites[site] = code
    return Configuration(tuple(sorted(sites)), tuple(sites[site] for site in sorted(sites)))


@pytest.fixture(scope="module")
def seen(supercell: Supercell) -> Novelty:
    """Pairs and triples of v_S, Se_S and at most one v_Mo, none nearer than 6 angstrom."""
    compositions = [[V_S, V_S], [V_S, SE_S], [SE_S, SE_S], [V_MO, V_S], [V_MO, SE_S], [V_S, V_S, SE_S]]
    compositions += [[V_MO, V_S, SE_S], [V_S, SE_S, SE_S], [V_MO, V_S, V_S]]
    rows = rows_of(supercell, [placed(supercell, codes) for codes in compositions])
    return learn_novelty(rows, fit_references(rows))


def widening(novelty: Novelty, supercell: Supercell, configuration: Configuration) -> float:
    """Of one configuration."""
    return float(novelty.widening(supercell, *block([configuration]))[0])


def block(configurations: list[Configuration]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Sites and codes (n, k)."""
    sites = np.array([c.sites for c in configurations], np.int16)
    return sites, np.array([c.defect_types for c in configurations], np.int16)


@pytest.mark.parametrize("codes", [[V_S, SE_S], [V_MO, V_S, SE_S], [V_S, V_S, SE_S]])
def test_what_was_seen_is_familiar(seen: Novelty, supercell: Supercell, codes: list[int]) -> None:
    configuration = placed(supercell, codes, apart=7.5)
    assert seen.reasons(supercell, [configuration]) == [""]
    assert widening(seen, supercell, configuration) == 1.0


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([V_S, V_S, SE_S, SE_S], "4 defects, at most 3 were seen"),
        ([V_S], "1 defects, at least 2 were seen"),
        ([V_MO, V_MO, V_S], "2 v_Mo, at most 1 were seen"),
        ([SE_S, SE_S, SE_S], "3 Se_S, at most 2 were seen"),
    ],
)
def test_numbers_never_seen_are_named(seen: Novelty, supercell: Supercell, codes: list[int], words: str) -> None:
    (reason,) = seen.reasons(supercell, [placed(supercell, codes)])
    assert words in reason


def test_fewer_defects_than_ever_widen_the_more_the_fewer_they_are(supercell: Supercell) -> None:
    rows = rows_of(supercell, [placed(supercell, [V_S] * n + [SE_S] * m) for n, m in ((4, 4), (6, 2), (2, 6))])
    novelty = learn_novelty(rows, fit_references(rows))
    eight, four, two = (widening(novelty, supercell, placed(supercell, [V_S, SE_S] * n)) for n in (4, 2, 1))
    assert 1.0 == eight < four < two


def test_a_type_never_seen_is_named(seen: Novelty, supercell: Supercell) -> None:
    configuration = placed(supercell, [W_MO, V_S])
    assert seen.reasons(supercell, [configuration]) == ["W_Mo was never seen in MoS2"]


def test_a_host_never_seen_is_named(seen: Novelty) -> None:
    other = Supercell.parse(catalogue_host("WSe2"), "4x4")
    assert seen.reasons(other, [Configuration((1,), (74 * 128,))]) == ["the host WSe2 was never seen"]


def test_a_pair_closer_than_any_seen_of_its_types_is_named_and_widens(seen: Novelty, supercell: Supercell) -> None:
    near, far = placed(supercell, [V_MO, V_S], apart=2.0), placed(supercell, [V_MO, V_S], apart=7.5)
    (reason,) = seen.reasons(supercell, [near])
    assert reason.startswith("v_S and v_Mo at 2.4")
    assert "the closest seen are at" in reason
    found = seen.widening(supercell, *block([near, far]))
    assert found[0] > found[1] == 1.0


def test_types_never_seen_together_are_named_and_widen(supercell: Supercell) -> None:
    apart = rows_of(supercell, [placed(supercell, codes) for codes in ([V_S, V_S], [SE_S, SE_S])])
    novelty = learn_novelty(apart, fit_references(apart))
    mixed = placed(supercell, [V_S, SE_S])
    (reason,) = novelty.reasons(supercell, [mixed])
    assert "v_S and Se_S were never seen together" in reason
    assert widening(novelty, supercell, mixed) > 1.0


def test_shares_far_from_all_seen_are_named_and_widen(supercell: Supercell) -> None:
    """Four of six, three of six, in steps of one sixth; all of one type is two steps further."""
    compositions = [[V_S] * n + [SE_S] * (6 - n) for n in (2, 3, 4)] + [[V_S] * 6 + [SE_S] * 6]
    rows = rows_of(supercell, [placed(supercell, codes) for codes in compositions])
    novelty = learn_novelty(rows, fit_references(rows))
    pure = placed(supercell, [V_S] * 6)
    assert novelty.reasons(supercell, [pure]) == ["the shares of 6*v_S are far from all seen"]
    assert widening(novelty, supercell, pure) > 1.0
    assert widening(novelty, supercell, placed(supercell, [V_S] * 5 + [SE_S])) == 1.0


def test_a_block_of_many_compositions_is_as_each_of_its_rows(seen: Novelty, supercell: Supercell) -> None:
    rng = np.random.default_rng(0)
    sites = np.sort(rng.permuted(np.tile(np.arange(supercell.n_sites), (200, 1)), axis=1)[:, :4], axis=1)
    is_metal = np.array([species == "Mo" for species in supercell.species])[sites]
    codes = np.where(is_metal, V_MO, rng.choice([V_S, SE_S], sites.shape))
    found = seen.widening(supercell, sites.astype(np.int16), codes.astype(np.int16))
    alone = [seen.widening(supercell, sites[i : i + 1].astype(np.int16), codes[i : i + 1]) for i in range(200)]
    np.testing.assert_array_equal(found, np.concatenate(alone))
    assert len(np.unique(found)) >= 3


def test_validation_rows_are_not_seen(seen: Novelty, supercell: Supercell) -> None:
    rows = rows_of(supercell, [placed(supercell, codes) for codes in ([V_S, V_S], [V_S, SE_S])])
    references = fit_references(rows)
    flipped = replace(rows, is_validation=~rows.is_validation)  # now the first two validate, and the last is learnt
    assert len(learn_novelty(rows, references).compositions) == 2
    assert len(learn_novelty(flipped, references).compositions) == 1


def test_a_training_that_goes_on_keeps_what_was_seen_before(seen: Novelty, supercell: Supercell) -> None:
    """A new type comes between the old codes, a new host behind the old one."""
    rows = rows_of(supercell, [placed(supercell, [V_S, W_MO])])
    other = Supercell.parse(catalogue_host("WSe2"), "4x4")
    codes = tuple(sorted({*seen.codes, 16 * 128 + 8, W_MO}))
    references = References(
        ("WSe2", "MoS2"), codes, ("formation_energy_per_site",), np.ones((2, len(codes))), np.zeros((2, 1)), np.ones(1)
    )
    longer = learn_novelty(replace(rows, supercells=(supercell, other)), references, seen)
    assert longer.reasons(supercell, [placed(supercell, [V_MO, V_S, SE_S])]) == [""]
    assert longer.reasons(supercell, [placed(supercell, [V_S, W_MO])]) == [""]
    assert "at most 3" in longer.reasons(supercell, [placed(supercell, [V_S, W_MO, SE_S, SE_S])])[0]
    assert len(longer.compositions) == len(seen.compositions) + 1


def test_an_ensemble_widens_what_it_has_not_seen(ensemble: Ensemble, rows: LabelledRows) -> None:
    """A single vacancy, under a novelty that has seen three defects at least and under the ensemble's own."""
    supercell, single = (
        rows.supercells[0],
        Configuration((0,), (V_MO if rows.supercells[0].species[0] == "Mo" else V_S,)),
    )
    seen = ensemble.novelty.compositions
    of_three = replace(ensemble.novelty, compositions=seen[seen[:, 1:].sum(axis=1) == 3])
    mean, plain = score_configurations(ensemble, supercell, [single], device="cpu")
    same, widened = score_configurations(replace(ensemble, novelty=of_three), supercell, [single], device="cpu")
    np.testing.assert_array_equal(same, mean)
    assert (widened > 1.5 * plain).all()
