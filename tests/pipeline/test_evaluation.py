"""What is compared with what: predictions beside labels, learnt rows, levels of theory, metrics of subsets."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.enumeration import canonical_form
from screening.defects.host import Supercell
from screening.defects.matching import Matcher, Structure
from screening.defects.symmetry import find_symmetry
from screening.dft.results import LevelOfTheory
from screening.errors import InputError, LevelOfTheoryError, UnknownNameError
from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes
from screening.learning.ensemble import Ensemble
from screening.learning.fingerprints import fingerprints, fingerprints_of_rows
from screening.learning.scorer import score_configurations
from screening.pipeline.evaluation import (
    EvaluatedModel,
    check_level,
    check_numbering,
    evaluate_ensemble,
    evaluate_model,
    find_model,
    learnt_by,
    metrics_by_defects,
    metrics_by_subset,
)
from screening.pipeline.labelled_files import LabelledFiles
from screening.pipeline.pretrained import unpack_model, with_card, write_model_file
from tests.learning.synthetic import labelled_rows
from tests.pipeline.made_evaluations import HIGH, LOW, configuration, labelled_of, made_evaluation
from tests.pipeline.made_models import LEVEL, small_model
from tests.synthetic_results import add_results, mos2

NONE = np.empty(0, np.uint64)


@cache
def ensemble() -> Ensemble:
    return ensemble_from_bytes(small_model().packed)


@cache
def labelled() -> LabelledFiles:
    return labelled_of(labelled_rows(), level=LEVEL)


@cache
def learnt() -> np.ndarray:
    """Fingerprints of the rows that the small model has learnt from."""
    is_train = np.array([split == "train" for split in labelled().splits])
    return np.sort(fingerprints_of_rows(labelled().chosen(is_train)))


def model_with(known: np.ndarray | None) -> EvaluatedModel:
    return EvaluatedModel("small", LEVEL, "0", small_model().card.hosts, ensemble(), known)


def test_predictions_are_the_scorers_in_the_order_of_the_rows() -> None:
    found = evaluate_ensemble(ensemble(), labelled(), learnt=NONE, device="cpu")
    assert found.properties == labelled().properties
    for i in (0, 1, 2, 239):
        mean, std = score_configurations(
            ensemble(), labelled().supercells[0], [labelled().configurations[i]], device="cpu"
        )
        np.testing.assert_allclose(found.means[i], mean[0], atol=1e-5)
        np.testing.assert_allclose(found.stds[i], std[0], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found.labels, labelled_rows().labels)
    assert (found.half_widths >= found.stds).all()


def test_errors_are_predicted_minus_calculated() -> None:
    found = made_evaluation().errors("formation_energy_per_site")
    np.testing.assert_allclose(found.errors, [0.01, 0.02, 0.03, np.nan])
    np.testing.assert_allclose(found.half_widths, 0.05)


def test_learnt_rows_are_left_out_and_counted() -> None:
    found = evaluate_ensemble(ensemble(), labelled(), learnt=learnt(), device="cpu")
    trained = {c for c, split in zip(labelled().configurations, labelled().splits, strict=True) if split == "train"}
    expected = [n for n, c in zip(labelled().names, labelled().configurations, strict=True) if c not in trained]
    assert list(found.rows.names) == expected
    assert 0 < found.rows.n_rows < 48  # some validation rows are configurations that were trained on
    assert found.n_left_out == 240 - found.rows.n_rows
    assert not found.is_learnt.any()


def test_learnt_rows_are_marked_where_they_are_wanted() -> None:
    found = evaluate_ensemble(ensemble(), labelled(), learnt=learnt(), include_learnt=True, device="cpu")
    assert (found.rows.n_rows, found.n_left_out) == (240, 0)
    assert found.is_learnt[:192].all()
    assert not found.is_learnt.all()


def test_nothing_left_is_refused() -> None:
    is_train = np.array([split == "train" for split in labelled().splits])
    with pytest.raises(InputError, match=r"none of 192 labelled rows is left.* learnt from 192 .*--include-learnt"):
        evaluate_ensemble(ensemble(), labelled().chosen(is_train), learnt=learnt(), device="cpu")


def test_rows_that_the_model_cannot_predict_are_refused_one_by_one() -> None:
    other = Supercell.parse(catalogue_host("WSe2"), "4x4")
    data = replace(
        labelled().chosen(np.array([200, 201, 202])),
        supercells=(*labelled().supercells, other),
        supercell_of_row=np.array([0, 1, 0]),
        configurations=(labelled().configurations[200], configuration((0, "v_W")), configuration((0, "W_Mo"))),
    )
    found = evaluate_ensemble(ensemble(), data, learnt=NONE, device="cpu")
    assert found.rows.names == ("row 200",)
    (host, type_) = found.refusals
    assert (host[0], type_[0]) == ("row 201", "row 202")
    assert "not from WSe2" in host[1]
    assert "never seen W_Mo in MoS2" in type_[1]


def test_only_the_wanted_properties_are_evaluated() -> None:
    wanted = ("homo_lumo_gap_min", "formation_energy")
    found = evaluate_ensemble(ensemble(), labelled(), learnt=NONE, properties=wanted, device="cpu")
    assert found.properties == ("formation_energy", "homo_lumo_gap_min")
    np.testing.assert_array_equal(found.labels, labelled_rows().labels[:, [0, 2]])
    with pytest.raises(UnknownNameError, match="'total_mag' cannot be evaluated: the model predicts formation_energy"):
        evaluate_ensemble(ensemble(), labelled(), learnt=NONE, properties=("total_mag",), device="cpu")


def test_labels_of_no_common_property_are_refused() -> None:
    data = replace(labelled(), properties=("homo", "lumo"), labels=labelled().labels[:, :2])
    with pytest.raises(InputError, match="at least one property in common"):
        evaluate_ensemble(ensemble(), data, learnt=NONE, device="cpu")


def test_a_model_that_does_not_know_what_it_learnt_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not say what it has learnt from.*--include-learnt"):
        evaluate_model(model_with(None), labelled(), device="cpu")
    found = evaluate_model(model_with(None), labelled(), include_learnt=True, device="cpu")
    assert found.rows.n_rows == 240


def test_another_level_of_theory_is_an_error() -> None:
    other = LevelOfTheory("other", "none", "none", {"decay": 4.0})
    with pytest.raises(LevelOfTheoryError, match="made are at the level of theory 'other', the model is at 'formula'"):
        evaluate_model(model_with(learnt()), labelled_of(labelled_rows(), level=other), device="cpu")
    check_level(labelled_of(labelled_rows(), level=None), LEVEL)  # files that do not say are the user's word
    check_level(labelled_of(labelled_rows(), level=replace(LEVEL, name="of another name")), LEVEL)


def test_runs_of_vasp_with_other_elements_are_of_one_level() -> None:
    def level(**potentials: str) -> LevelOfTheory:
        settings = {"cutoff": 500.0, "pseudopotentials": potentials, "hubbard_u": {}}
        return LevelOfTheory("VASP PBE", "VASP", "PBE", settings)

    labels = labelled_of(labelled_rows(), level=level(Mo="Mo_pv", S="S"))
    check_level(labels, level(Mo="Mo_pv", Se="Se"))
    with pytest.raises(LevelOfTheoryError):
        check_level(labels, level(Mo="Mo_sv"))


def test_a_subset_without_rows_may_be_at_another_level() -> None:
    data = replace(labelled(), subsets=("made", "empty"), levels=(LEVEL, LevelOfTheory("x", "y", "z")))
    check_level(data, LEVEL)


def test_hosts_that_number_their_sites_otherwise_are_refused() -> None:
    """A model whose MoS2 has its sulphur first knows the same configurations by other numbers."""
    host = labelled().supercells[0].host
    order = [1, 2, 0]
    turned = replace(host, species=tuple(host.species[i] for i in order), positions=host.positions[order])
    with pytest.raises(InputError, match=r"unit cell of MoS2 .* is another .*--include-learnt"):
        evaluate_model(replace(model_with(learnt()), hosts=(turned,)), labelled(), device="cpu")
    lattice = host.lattice * np.array([[1.1], [1.1], [1.0]])
    with pytest.raises(InputError, match="unit cell of MoS2"):
        check_numbering(labelled(), [replace(host, lattice=lattice)])
    gallium = catalogue_host("GaSe")  # Ga, Ga, Se, Se with the first Ga below
    mixed = replace(gallium, positions=gallium.positions[[0, 1, 3, 2]])  # Se on the other face than its Ga
    data = replace(labelled(), supercells=(Supercell.parse(gallium, "4x4"),))
    with pytest.raises(InputError, match="unit cell of GaSe"):
        check_numbering(data, [mixed])


def test_hosts_that_symmetry_height_or_origin_tell_apart_number_their_sites_alike() -> None:
    host = labelled().supercells[0].host
    scale = np.array([1.02, 1.02, 1.3])
    higher = replace(
        host, lattice=host.lattice * scale[:, None], positions=(host.positions - 0.5) / [1.0, 1.0, 1.3] + 0.5
    )
    moved = replace(host, positions=host.positions + np.array([0.4, 0.8, 0.02]))
    faces = replace(host, positions=host.positions[[0, 2, 1]])  # the mirror plane exchanges the two sulphur sites
    for other in (higher, moved, faces, mos2().host):
        check_numbering(labelled(), [other])
    check_numbering(labelled(), [])  # a host that the model does not know is refused row by row


def test_exchanged_faces_have_the_same_canonical_numbers() -> None:
    """Why the order of sites that a symmetry operation exchanges does not matter."""
    host = catalogue_host("MoS2")
    faces = replace(host, positions=host.positions[[0, 2, 1]])
    pair = configuration((0, "v_Mo"), (21, "v_S"), (40, "Se_S"))
    found = []
    for cell in (Supercell.parse(host, "4x4"), Supercell.parse(faces, "4x4")):
        structure = Structure("pair", Supercell.parse(host, "4x4").lattice, *_fractional(pair))
        matched = Matcher(cell).match(structure)
        found.append(canonical_form(find_symmetry(cell), matched)[0])
    assert found[0] == found[1]


def _fractional(some: Configuration) -> tuple[tuple[str, ...], np.ndarray]:
    cell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    species, positions = cell.structure(some)
    return species, positions @ np.linalg.inv(cell.lattice)


def test_metrics_of_subsets_weigh_the_same_in_their_mean() -> None:
    mean, low, high = metrics_by_subset(made_evaluation(), "homo_lumo_gap_min")
    assert (mean.subset, low.subset, high.subset) == ("mean of subsets", LOW, HIGH)
    assert (low.metrics.n_rows, high.metrics.n_rows, mean.metrics.n_rows) == (3, 1, 4)
    assert low.metrics.mae == pytest.approx(0.1)
    assert mean.metrics.mae == pytest.approx(0.2)
    assert (low.metrics.coverage_68, high.metrics.coverage_68, high.metrics.coverage_95) == (1.0, 0.0, 1.0)


def test_a_single_subset_has_no_mean_of_subsets() -> None:
    (row,) = metrics_by_subset(made_evaluation(), "formation_energy_per_site")
    assert (row.subset, row.metrics.n_rows) == (LOW, 3)
    assert row.metrics.mae == pytest.approx(0.02)


def test_metrics_by_number_of_defects() -> None:
    found = metrics_by_defects(made_evaluation(extra_pairs=2), "homo_lumo_gap_min")
    assert [(row.subset, row.n_defects, row.metrics.n_rows) for row in found] == [
        (LOW, 1, 1), (LOW, 2, 3), (LOW, 3, 1), (HIGH, 4, 1),
    ]  # fmt: skip


def test_a_model_file_says_what_it_has_learnt_from(tmp_path: Path) -> None:
    carrying = replace(ensemble(), extra={"learnt": learnt()})
    file = unpack_model(with_card(ensemble_to_bytes(carrying), small_model().card), "small")
    write_model_file(tmp_path / "small.safetensors", file)
    found = find_model(None, str(tmp_path / "small.safetensors"))
    assert (found.name, found.level.digest) == ("small", LEVEL.digest)
    assert found.sha256 == hashlib.sha256((tmp_path / "small.safetensors").read_bytes()).hexdigest()
    assert found.learnt is not None
    np.testing.assert_array_equal(found.learnt, learnt())


def test_a_model_file_of_another_kind_does_not_say_it(tmp_path: Path) -> None:
    silent = unpack_model(with_card(ensemble_to_bytes(replace(ensemble(), extra={})), small_model().card), "small")
    write_model_file(tmp_path / "small.safetensors", silent)
    assert find_model(None, str(tmp_path / "small.safetensors")).learnt is None


def add_model(session: Session, name: str, trained: list[int], held: list[int], *, parent: int | None = None) -> int:
    """Store the small model with the results that it learnt from and was chosen on."""
    row = tables.TrainedModel(
        name=name, level_id=session.scalars(select(tables.LevelOfTheory.id)).one(), parent_id=parent, seed=0,
        properties=list(labelled_rows().properties), settings={}, state="finished", weights=small_model().packed,
    )  # fmt: skip
    session.add(row)
    session.flush()
    roles = [(i, "train") for i in trained] + [(i, "validation") for i in held]
    session.execute(
        insert(tables.ModelTrainingResult), [{"model_id": row.id, "result_id": i, "role": role} for i, role in roles]
    )
    return row.id


def test_a_stored_model_has_learnt_from_its_results_and_those_of_its_ancestors(session: Session) -> None:
    add_results(session, 40)
    ids = list(session.scalars(select(tables.CalculationResult.id).order_by(tables.CalculationResult.id)))
    first = add_model(session, "first", ids[:5], ids[5:8])
    second = add_model(session, "second", ids[8:10], ids[10:12], parent=first)
    add_model(session, "stranger", ids[12:20], [])
    configurations = {
        row.id: row
        for row in session.execute(
            select(tables.CalculationResult.id, tables.Configuration.sites, tables.Configuration.defect_types)
            .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
            .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        )
    }

    def expected(chosen: list[int]) -> set[int]:
        found = [configurations[i] for i in chosen]
        made = [type(configuration((0, "v_S")))(tuple(row.sites), tuple(row.defect_types)) for row in found]
        return set(fingerprints(mos2(), made).tolist())

    assert set(learnt_by(session, first).tolist()) == expected(ids[:5])
    assert set(learnt_by(session, second).tolist()) == expected(ids[:5] + ids[8:10])


def test_a_model_of_the_database_is_found_with_its_level_and_digest(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        add_results(session, 30)
        ids = list(session.scalars(select(tables.CalculationResult.id)))
        add_model(session, "stored", ids[:10], ids[10:])
    found = find_model(clean_engine, "stored")
    assert (found.name, found.level.name) == ("stored", "formula")
    assert found.sha256 == hashlib.sha256(small_model().packed).hexdigest()
    assert found.learnt is not None
    assert len(found.learnt) == 10
