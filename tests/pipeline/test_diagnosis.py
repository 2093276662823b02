"""Real results are made wrong in the ways in which results go wrong, and judged by a pair expansion of others.

Half of the results of a supercell are learnt from, the other half come as batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from screening.defects.defect_types import parse_defect_types
from screening.dft import builtin
from screening.learning.pair_expansion import fit_pair_expansion
from screening.pipeline.diagnosis import Residuals, diagnose_batch, outliers
from screening.pipeline.labelled_files import Selection, read_labelled

ENERGY, PER_SITE, GAP = "formation_energy", "formation_energy_per_site", "homo_lumo_gap_min"
SIZES = (5, 10, 40, 150)


@dataclass(frozen=True, eq=False)
class New:
    """Results that were not learnt from, in an order of chance, beside predictions."""

    residuals: Residuals

    def batch(self, rows: NDArray[np.int64]) -> Residuals:
        found = self.residuals
        return replace(
            found, values=found.values[rows], means=found.means[rows], half_widths=found.half_widths[rows],
            counts=found.counts[rows],
        )  # fmt: skip

    def changed(self, **columns: NDArray[np.float64]) -> New:
        values = self.residuals.values.copy()
        for name, column in columns.items():
            values[:, self.residuals.properties.index(name)] = column
        return New(replace(self.residuals, values=values))

    def value(self, name: str) -> NDArray[np.float64]:
        return self.residuals.values[:, self.residuals.properties.index(name)]

    def mean(self, name: str) -> NDArray[np.float64]:
        return self.residuals.means[:, self.residuals.properties.index(name)]

    @property
    def n_defects(self) -> NDArray[np.int64]:
        return self.residuals.counts.sum(axis=1)

    def shifted(self, **of_type: float) -> New:
        """With so much more energy for every defect of a type."""
        shifts = {kind.name: kind.code for kind in parse_defect_types(list(of_type))}
        columns = [self.residuals.codes.index(shifts[name]) for name in of_type]
        total = self.residuals.counts[:, columns] @ np.array(list(of_type.values()))
        return self.changed(
            **{ENERGY: self.value(ENERGY) + total, PER_SITE: self.value(PER_SITE) + total / self.n_defects}
        )


@pytest.fixture(scope="module", params=["built-in", "2DMD"])
def new(request: pytest.FixtureRequest) -> New:
    if request.param == "built-in":
        labelled = read_labelled(builtin.shipped_path())
    else:
        release: Path = request.getfixturevalue("shared_data") / "2dmd"
        labelled = read_labelled(
            release, selection=Selection(subsets=["low_density_defects/MoS2"], splits=["validation"])
        )
    order = np.random.default_rng(0).permutation(labelled.n_rows)
    is_new = np.zeros(labelled.n_rows, bool)
    is_new[order[: labelled.n_rows // 2]] = True
    model = fit_pair_expansion(labelled.rows(is_new))
    rows = order[: labelled.n_rows // 2]
    configurations = [labelled.configurations[i] for i in rows]
    mean, std = model.predict_configurations(labelled.supercells[0], configurations)
    codes = tuple(sorted({code for c in configurations for code in c.defect_types}))
    counts = np.array([[c.defect_types.count(code) for code in codes] for c in configurations])
    columns = [labelled.properties.index(name) for name in model.properties]
    return New(Residuals(model.properties, labelled.labels[np.ix_(rows, columns)], mean, 1.96 * std, codes, counts))


@pytest.mark.parametrize("n", SIZES)
def test_honest_batches_are_not_condemned(new: New, n: int) -> None:
    generator = np.random.default_rng(n)
    for _ in range(100):
        assert diagnose_batch(new.batch(generator.choice(len(new.n_defects), n, replace=False))) is None


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize(("name", "sign"), [(PER_SITE, 1), (GAP, 1), (GAP, -1)])
def test_batches_of_what_is_predicted_best_are_not_condemned(new: New, name: str, sign: int, n: int) -> None:
    """As active learning chooses: alike, at the edge, and picked for being predicted low or high."""
    best = np.argsort(sign * new.mean(name))[:n]
    assert diagnose_batch(new.batch(best)) is None


def test_hardly_an_honest_result_is_condemned_alone(new: New) -> None:
    assert len(outliers(new.residuals)) <= 0.002 * len(new.n_defects)


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda new: new.changed(**{GAP: 1000 * new.value(GAP)}), f"{GAP}: looks like meV given as eV"),
        (
            lambda new: new.changed(**{ENERGY: 1000 * new.value(ENERGY), PER_SITE: 1000 * new.value(PER_SITE)}),
            f"{PER_SITE}: looks like meV given as eV",
        ),
        (
            lambda new: new.changed(**{ENERGY: new.value(ENERGY) / 27.2114, PER_SITE: new.value(PER_SITE) / 27.2114}),
            "Hartree given as eV",
        ),
        (lambda new: new.changed(**{PER_SITE: new.value(ENERGY)}), "total energies given per defect (ratio"),
        (lambda new: new.changed(**{ENERGY: new.value(PER_SITE)}), "energies per defect given as totals (ratio"),
    ],
    ids=["gap in meV", "energies in meV", "energies in Hartree", "totals per defect", "per defect as totals"],
)
def test_wrong_units_are_named(new: New, change: Callable[[New], New], reason: str, n: int) -> None:
    generator = np.random.default_rng(n)
    wrong = change(new)
    for _ in range(10):
        found = diagnose_batch(wrong.batch(generator.choice(len(new.n_defects), n, replace=False)))
        assert found is not None
        assert reason in found


@pytest.mark.parametrize("n", SIZES)
def test_swapped_chemical_potentials_are_noticed(new: New, n: int) -> None:
    """Those of S and Se, 0.7 eV apart: every removed S costs so much less, every added Se as well."""
    generator = np.random.default_rng(n)
    wrong = new.shifted(v_S=-0.7, Se_S=-1.4)
    concerned = np.flatnonzero(wrong.value(ENERGY) != new.value(ENERGY))
    for _ in range(10):
        found = diagnose_batch(wrong.batch(generator.choice(concerned, n, replace=False)))
        assert found is not None
        if n >= 40:
            assert "other chemical potentials: shifts by" in found


def test_a_shift_is_measured_by_type(new: New) -> None:
    found = diagnose_batch(new.shifted(v_S=1.23).batch(np.arange(100)))
    assert found is not None
    assert "other chemical potentials: shifts by +1.23 eV per v_S (" in found


def test_a_batch_of_which_a_part_is_concerned_is_noticed(new: New) -> None:
    """A third of the results has the type whose energies are wrong, the others are right."""
    has_it = new.residuals.counts[:, new.residuals.codes.index(parse_defect_types("v_Mo")[0].code)] > 0
    rows = np.concatenate([np.flatnonzero(has_it)[:20], np.flatnonzero(~has_it)[:40]])
    found = diagnose_batch(new.shifted(v_Mo=2.0).batch(rows))
    assert found is not None
    assert "eV per v_Mo (" in found


def test_an_unconverged_run_is_condemned_alone(new: New) -> None:
    energies = new.value(ENERGY).copy()
    energies[7] += 6.0
    wrong = new.changed(**{ENERGY: energies, PER_SITE: energies / new.n_defects})
    assert diagnose_batch(wrong.batch(np.arange(60))) is None
    found = outliers(wrong.residuals)
    assert "half widths away, as an unconverged run is" in found.pop(7)
    assert len(found) <= 0.002 * len(new.n_defects)


def test_what_is_negligible_is_never_wrong(new: New) -> None:
    """A model that is a hundred times too sure of itself condemns nothing that it knows to 30 meV."""
    rows = np.flatnonzero(np.abs(new.value(PER_SITE) - new.mean(PER_SITE)) < 0.02)
    sure = replace(new.batch(rows), half_widths=new.batch(rows).half_widths / 100)
    only_energy = Residuals(
        (PER_SITE,), *(getattr(sure, name)[:, [sure.properties.index(PER_SITE)]] for name in ("values", "means")),
        sure.half_widths[:, [sure.properties.index(PER_SITE)]], sure.codes, sure.counts,
    )  # fmt: skip
    assert diagnose_batch(only_energy) is None
    assert outliers(only_energy) == {}
