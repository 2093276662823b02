"""References under the network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from screening.defects.defect_types import Configuration
from screening.errors import InputError
from screening.learning.references import extend_references, fit_references, output_labels, outputs_of
from tests.learning.synthetic import SINGLE, labelled_rows


def test_energies_of_defects_that_do_not_interact_are_recovered() -> None:
    rows = labelled_rows()
    sums = np.array([sum(SINGLE[c] for c in configuration.defect_types) for configuration in rows.configurations])
    rows = replace(rows, labels=np.stack([sums, sums / rows.n_defects, rows.labels[:, 2]], axis=1))
    references = fit_references(rows)
    np.testing.assert_allclose(references.energies[0], [SINGLE[c] for c in references.codes], atol=1e-3)


def test_offsets_are_the_mean_energy_of_the_types_and_the_mean_of_the_host() -> None:
    rows = labelled_rows()
    references = fit_references(rows)
    v_s, v_mo = 16 * 128, 42 * 128
    offsets = references.offsets(["MoS2"], [Configuration((1, 20), (v_mo, v_s))])
    energies = dict(zip(references.codes, references.energies[0], strict=True))
    assert offsets[0, 0] == pytest.approx((energies[v_s] + energies[v_mo]) / 2)
    assert offsets[0, 1] == pytest.approx(rows.labels[~rows.is_validation, 2].mean())


def test_validation_rows_do_not_move_the_references() -> None:
    rows = labelled_rows()
    labels = rows.labels.copy()
    labels[rows.is_validation] += 100.0
    assert np.array_equal(fit_references(rows).energies, fit_references(replace(rows, labels=labels)).energies)


def test_unknown_host_and_unseen_type_are_refused_by_name() -> None:
    references = fit_references(labelled_rows())
    with pytest.raises(InputError, match="not from WSe2"):
        references.check("WSe2", [16 * 128])
    with pytest.raises(InputError, match=r"has never seen W_Mo in MoS2; it knows v_S, Se_S, v_Mo"):
        references.check("MoS2", [16 * 128, 42 * 128 + 74])


def test_energy_per_site_is_derived_where_only_the_total_is_known() -> None:
    rows = labelled_rows(30)
    labels = rows.labels.copy()
    labels[::2, 1] = np.nan
    derived = output_labels(replace(rows, labels=labels), outputs_of(rows.properties))
    np.testing.assert_allclose(derived[:, 0], rows.labels[:, 1])


def test_a_host_without_values_of_a_property_is_refused() -> None:
    rows = labelled_rows(60)
    other = replace(rows.supercells[0], host=replace(rows.supercells[0].host, name="other"))
    labels = rows.labels.copy()
    labels[1::2, 2] = np.nan
    both = replace(rows, supercells=(rows.supercells[0], other), supercell_of_row=np.arange(60) % 2, labels=labels)
    with pytest.raises(InputError, match="no training row of other has a value of homo_lumo_gap_min"):
        fit_references(both)


def test_what_never_varied_may_vary_in_new_rows() -> None:
    rows = labelled_rows(60)
    labels = rows.labels.copy()
    labels[:, 2] = 0.0
    old = fit_references(replace(rows, labels=labels))
    assert old.scales[1] == 0.0
    assert extend_references(old, rows).scales[1] > 0.0


def test_extending_keeps_what_was_known() -> None:
    old = fit_references(labelled_rows(100, seed=1))
    new = extend_references(old, labelled_rows(200, seed=2))
    assert new.codes == old.codes
    np.testing.assert_array_equal(new.energies, old.energies)
    np.testing.assert_array_equal(new.scales, old.scales)
