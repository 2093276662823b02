"""Models from files in a database, and out of it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import listings, models, queries, tables
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.errors import FileFormatError, InputError, LevelOfTheoryError, UnknownNameError
from screening.learning.artifacts import ensemble_to_bytes
from screening.learning.fingerprints import fingerprints
from screening.learning.scorer import score_configurations
from screening.pipeline.campaigns import CampaignRequest, plan
from screening.pipeline.evaluation import LEARNT, learnt_by
from screening.pipeline.file_models import label_ranges, seen_supercells
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.model_transfer import add_model_file, export_model, learnt_from_files
from screening.pipeline.pretrained import ModelFile, unpack_model, with_card
from screening.pipeline.references import add_level
from screening.pipeline.searches import add_search_space, check_trained_types
from screening.pipeline.training_requests import roles_of
from tests.learning.synthetic import labelled_rows
from tests.pipeline.made_models import LEVEL, small_model


def renamed(name: str) -> ModelFile:
    small = small_model()
    return unpack_model(with_card(small.packed, replace(small.card, name=name)), name)


def search_space(session: Session, types: str) -> int:
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
    return add_search_space(session, stored, SearchSpace(stored.supercell, parse_defect_types(types), 2))


def test_a_model_of_a_file_is_a_finished_model_in_production(session: Session) -> None:
    assert add_model_file(session, small_model()) == ("small", True)
    model = queries.model_by_name(session, None)
    assert (model.name, model.state, model.version, model.seed) == ("small", "finished", 1, 0)
    assert model.settings == {"epochs": 2}
    assert model.weights == small_model().packed
    found = listings.describe_model(session, "small")
    assert (found["level"], found["standing"], found["n_train"]) == ("formula", "production", 0)
    (metric,) = found["metrics"]
    assert (metric["dataset"], metric["property"], metric["n_rows"], metric["mae"], metric["rmse"]) == (
        "made/MoS2", "formation_energy_per_site", 48, 0.0125, 0.02,
    )  # fmt: skip
    assert queries.get_host(session, "MoS2").is_layer


def test_the_same_file_again_changes_nothing(session: Session) -> None:
    add_model_file(session, small_model())
    assert add_model_file(session, small_model()) == ("small", False)
    assert add_model_file(session, small_model(), "other") == ("other", True)
    assert add_model_file(session, small_model(), "other") == ("other", False)
    assert session.scalar(select(func.count()).select_from(tables.TrainedModel)) == 2


def test_a_name_that_is_taken_or_not_allowed_is_refused(session: Session) -> None:
    add_model_file(session, small_model())
    other = replace(small_model().card, licence="another")
    with pytest.raises(InputError, match="a model is called 'small' already"):
        add_model_file(session, unpack_model(with_card(small_model().packed, other), "x"))
    with pytest.raises(InputError, match="cannot be called 'small@2'"):
        add_model_file(session, renamed("small@2"))


def test_another_level_of_theory_of_the_name_is_refused(session: Session) -> None:
    add_level(session, LevelOfTheory("formula", "none", "none", {"decay": 4.0}))
    with pytest.raises(LevelOfTheoryError, match="formula"):
        add_model_file(session, small_model())


def test_another_material_of_the_name_is_refused(session: Session) -> None:
    add_supercell(session, Supercell.parse(replace(catalogue_host("WSe2"), name="MoS2"), "3x3"))
    with pytest.raises(InputError, match="the database knows another host as MoS2"):
        add_model_file(session, small_model())


def test_weights_that_do_not_fit_never_reach_the_database(session: Session) -> None:
    small = small_model()
    faulty = unpack_model(with_card(small.packed, replace(small.card, hosts=())), "x")
    with pytest.raises(FileFormatError, match="lacks its hosts"):
        add_model_file(session, faulty)
    assert session.scalar(select(func.count()).select_from(tables.TrainedModel)) == 0


def test_a_search_space_is_checked_against_what_the_weights_know(session: Session) -> None:
    add_model_file(session, small_model())
    model = queries.model_by_name(session, "small")
    check_trained_types(session, model, search_space(session, "v_S,Se_S,v_Mo"))
    with pytest.raises(InputError, match="model small has never seen W_Mo in MoS2; it knows v_S, Se_S, v_Mo"):
        check_trained_types(session, model, search_space(session, "v_S,W_Mo"))


def test_it_is_the_model_of_its_hosts_only(session: Session) -> None:
    add_model_file(session, small_model())
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
    assert listings.newest_model(session, stored.id) == "small"
    other = add_supercell(session, Supercell.parse(catalogue_host("WSe2"), "4x4"))
    with pytest.raises(UnknownNameError, match="no finished model has learnt from results of WSe2"):
        listings.newest_model(session, other.id)


def test_a_campaign_takes_the_ranges_of_the_labels_from_the_card(session: Session) -> None:
    add_model_file(session, small_model())
    model = queries.model_by_name(session, "small")
    assert label_ranges(session, model.id)["formation_energy"] == (-1.0, 12.5)
    campaign = plan(session, search_space(session, "v_S,Se_S"), CampaignRequest(model_id=model.id))
    bins = session.scalars(select(tables.CampaignBins).where(tables.CampaignBins.campaign_id == campaign.id)).all()
    assert {row.property for row in bins} == set(labelled_rows().properties)
    assert all(row.low < -1.0 and row.high > 12.5 for row in bins)


def stored_model(session: Session) -> int:
    """A model that was trained here: without a card, on two results of which one validates."""
    rows = labelled_rows()
    stored = add_supercell(session, rows.supercells[0])
    small = small_model()
    ensemble = replace(small.ensemble(), extra={})
    level_id = add_level(session, LEVEL)
    model = tables.TrainedModel(
        name="stored", level_id=level_id, properties=list(rows.properties), settings={"epochs": 2}, seed=7,
        state="finished", weights=ensemble_to_bytes(ensemble), training_time_s=2.5,
    )  # fmt: skip
    session.add(model)
    ids = add_configurations(session, stored, rows.configurations[:2])
    for configuration_id, role, energy in zip(ids, ("train", "validation"), (2.0, 3.0), strict=True):
        calculation = tables.Calculation(configuration_id=configuration_id, level_id=level_id, state="finished")
        session.add(calculation)
        session.flush()
        result = tables.CalculationResult(
            calculation_id=calculation.id, dataset="made", row_name=role, energy=-1.0, formation_energy=energy
        )
        session.add(result)
        session.flush()
        session.add(tables.ModelTrainingResult(model_id=model.id, result_id=result.id, role=role))
    session.add(
        tables.ModelMetric(model_id=model.id, dataset="made", property="formation_energy", n_rows=1, mae=0.5, rmse=0.5)
    )
    session.flush()
    return model.id


def test_what_was_learnt_before_the_file_was_made_is_known_of_the_results_here(session: Session) -> None:
    """A model that was exported, and one that is trained from it elsewhere, know the row that trained it."""
    model_id = stored_model(session)
    level_id = session.get_one(tables.TrainedModel, model_id).level_id
    rows = queries.labelled_rows(session, level_id=level_id)
    (trained,) = [row.CalculationResult.id for row in rows if row.CalculationResult.formation_energy == 2.0]
    name, _ = add_model_file(session, export_model(session, "stored"), "back")
    back = queries.model_by_name(session, name)
    child = tables.TrainedModel(
        name="child", parent_id=back.id, level_id=level_id, properties=["homo"], settings={}, seed=0
    )
    session.add(child)
    session.flush()
    assert len(rows) == 2
    for identifier in (back.id, child.id):
        assert learnt_from_files(session, identifier, rows) == {trained}
        np.testing.assert_array_equal(learnt_by(session, identifier), learnt_by(session, model_id))
        assert seen_supercells(session, identifier) == {"MoS2": ("4x4",)}
    assert learnt_from_files(session, model_id, rows) == set()
    validated = [row for row in rows if row.CalculationResult.id != trained]
    assert roles_of(session, rows, back)[trained] == "train"
    assert roles_of(session, validated, back) == roles_of(session, validated, None)


def test_an_exported_model_says_what_the_database_knows_of_it(session: Session) -> None:
    stored_model(session)
    exported = export_model(session, "stored")
    card = exported.card
    assert (card.name, card.level) == ("stored", LEVEL)
    assert [(share.name, share.n_train, share.n_validation) for share in card.data] == [("made", 1, 1)]
    assert card.label_ranges == {"formation_energy": (2.0, 3.0)}
    assert card.supercells == {"MoS2": ("4x4",)}
    assert [(m.dataset, m.mae, m.coverage_68) for m in card.metrics] == [("made", 0.5, None)]
    assert {key: card.training[key] for key in ("seed", "training time (s)", "settings")} == {
        "seed": 7, "training time (s)": 2.5, "settings": {"epochs": 2},
    }  # fmt: skip
    supercell = labelled_rows().supercells[0]
    learnt = session.execute(
        select(tables.Configuration.sites, tables.Configuration.defect_types)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .join(tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id)
        .where(tables.CalculationResult.formation_energy == 2.0)
    ).one()
    configuration = replace(labelled_rows().configurations[0], sites=tuple(learnt[0]), defect_types=tuple(learnt[1]))
    np.testing.assert_array_equal(exported.ensemble().extra[LEARNT], fingerprints(supercell, [configuration]))


def test_an_exported_model_predicts_the_same_and_comes_back_into_a_database(session: Session, tmp_path: Path) -> None:
    stored_model(session)
    exported = export_model(session, "stored")
    rows = labelled_rows(12, seed=5)
    for one, other in zip(
        *(
            score_configurations(model.ensemble(), rows.supercells[0], rows.configurations, device="cpu")
            for model in (exported, small_model())
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert add_model_file(session, exported, "back") == ("back", True)
    again = export_model(session, "back")
    assert again.card.name == "back"
    assert again.card.data == exported.card.data
    assert models.find_model(session, "back") is not None


def test_only_a_finished_model_is_exported(session: Session) -> None:
    level_id = add_level(session, LEVEL)
    session.add(tables.TrainedModel(name="waits", level_id=level_id, properties=["homo"], settings={}, seed=0))
    session.flush()
    with pytest.raises(InputError, match="model waits is waiting"):
        export_model(session, "waits")
    with pytest.raises(UnknownNameError, match="no model is called 'absent'"):
        export_model(session, "absent")
