"""Named reads and small writes: adding twice is harmless, mixing levels of theory is not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from screening.database import queries
from screening.database.session import session_scope
from screening.database.tables import (
    Arrangement,
    Calculation,
    CalculationResult,
    Campaign,
    Chunk,
    Configuration,
    DefectType,
    Host,
    LevelOfTheory,
    SearchSpace,
    TrainedModel,
)
from screening.errors import InputError, LevelOfTheoryError, UnknownNameError

LEVEL = {"name": "HSE", "code": "VASP", "functional": "HSE06", "settings": {"encut": 500}, "digest": "d2"}


def configuration(ids: Any, sites: list[int]) -> dict[str, Any]:
    return {
        "composition_id": ids.vacancy if len(sites) == 1 else ids.pair, "n_defects": len(sites), "sites": sites,
        "defect_types": [2048] * len(sites), "multiplicity": 128,
    }  # fmt: skip


def add_result(session: Session, ids: Any, sites: list[int], **columns: Any) -> int:
    """A finished calculation of a configuration; its result's id."""
    supercell = columns.pop("supercell", ids.supercell)
    found = queries.configuration_ids(session, supercell, [configuration(ids, sites)])
    identifier = found[tuple(sites), (2048,) * len(sites)]
    calculation = Calculation(configuration_id=identifier, level_id=columns.pop("level", ids.level), state="finished")
    session.add(calculation)
    session.flush()
    result = CalculationResult(
        calculation_id=calculation.id, row_name=str(sites), **{"dataset": "d", "energy": -1.0} | columns
    )
    session.add(result)
    session.flush()
    return result.id


def test_a_host_is_found_by_name_and_an_unknown_one_names_those_there_are(session: Session, ids: Any) -> None:
    assert queries.get_host(session, "MoS2").id == ids.host
    assert queries.find_host(session, "WSe2") is None
    with pytest.raises(UnknownNameError, match=r"no host 'WSe2'; it has MoS2: `screening host add WSe2`"):
        queries.get_host(session, "WSe2")


def test_adding_the_same_row_twice_gives_the_same_id(session: Session, ids: Any) -> None:
    key = {
        "supercell_id": ids.supercell,
        "defect_types": [2048],
        "min_defects": 1,
        "max_defects": 2,
        "composition": None,
    }
    first = queries.get_or_add(session, SearchSpace, key, expected=3)
    assert queries.get_or_add(session, SearchSpace, key, expected=3) == first
    other = queries.get_or_add(session, SearchSpace, key | {"composition": [2]}, expected=1)
    assert other != first


def test_threads_that_add_the_same_rows_at_once_agree(clean_engine: Engine, committed_ids: Any) -> None:
    rows = [configuration(committed_ids, [site]) for site in range(300)]
    found: list[dict[Any, int]] = []

    def add(order: int) -> None:
        with session_scope(clean_engine) as session:
            found.append(queries.configuration_ids(session, committed_ids.supercell, rows[::order]))

    threads = [threading.Thread(target=add, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(ids == found[0] for ids in found)
    with session_scope(clean_engine) as session:
        assert session.scalar(select(func.count()).select_from(Configuration)) == 300


def test_configurations_are_added_beyond_one_statement_and_known_ones_keep_their_id(session: Session, ids: Any) -> None:
    first = queries.configuration_ids(session, ids.supercell, [configuration(ids, [5])])
    rows = [configuration(ids, [left, right]) for left in range(80) for right in range(100, 180)]
    found = queries.configuration_ids(session, ids.supercell, [*rows, configuration(ids, [5])])
    assert len(found) == 6401
    assert found[(5,), (2048,)] == first[(5,), (2048,)]


def test_only_the_configurations_that_are_asked_for_are_read(session: Session, ids: Any) -> None:
    rows = [configuration(ids, sites) for sites in ([], [3], [4], [3, 4])]
    known = queries.configuration_ids(session, ids.supercell, rows)
    assert queries.configuration_ids(session, ids.supercell, rows[2:3]) == {((4,), (2048,)): known[(4,), (2048,)]}
    wanted = [((3, 4), (2048, 2048)), ((), ()), ((9,), (2048,)), ((3,), (2082,))]
    assert queries.find_configurations(session, ids.supercell, wanted) == {key: known[key] for key in wanted[:2]}
    assert queries.find_configurations(session, ids.supercell + 1, wanted) == {}
    assert queries.find_configurations(session, ids.supercell, []) == {}


def test_defect_types_and_compositions_may_be_added_again(session: Session, ids: Any) -> None:
    queries.add_defect_types(session, [{"id": 2048, "name": "v_S", "removed": "S", "added": None}])
    queries.add_defect_types(session, [])
    assert session.scalar(select(func.count()).select_from(DefectType)) == 2
    rows = {
        "v_S": {"defect_types": [2048], "counts": [1], "n_defects": 1},
        "2*v_S": {"defect_types": [2048], "counts": [2], "n_defects": 2},
    }
    found = queries.composition_ids(session, rows)
    assert found["v_S"] == ids.vacancy
    assert set(found) == set(rows)
    assert queries.composition_ids(session, rows) == found
    assert queries.composition_ids(session, {}) == {}


def test_a_level_of_theory_is_added_once_and_its_name_is_not_used_for_others(session: Session, ids: Any) -> None:
    level = queries.add_level(session, **LEVEL)
    assert queries.add_level(session, **LEVEL) == level
    assert queries.level_id_of(session, "HSE") == level
    with pytest.raises(LevelOfTheoryError, match="'HSE' is known with other settings"):
        queries.add_level(session, **LEVEL | {"digest": "d3", "settings": {"encut": 400}})
    with pytest.raises(UnknownNameError, match="'PBE0'; known are HSE, PBE"):
        queries.level_id_of(session, "PBE0")
    assert session.scalar(select(func.count()).select_from(LevelOfTheory)) == 2


def test_chemical_potentials_of_a_level_must_agree(session: Session, ids: Any) -> None:
    queries.add_chemical_potentials(session, ids.level, {"S": (-4.1, "S8"), "Mo": (-10.9, "bcc")})
    queries.add_chemical_potentials(session, ids.level, {"S": (-4.1 + 1e-8, "S8"), "Se": (-3.5, "Se8")})
    assert queries.chemical_potentials(session, ids.level) == {"S": -4.1, "Mo": -10.9, "Se": -3.5}
    with pytest.raises(LevelOfTheoryError, match=r"of S is -4\.100000 eV in the database and -4\.200000 eV"):
        queries.add_chemical_potentials(session, ids.level, {"S": (-4.2, "S8")})


def test_a_source_file_is_known_by_its_hash(session: Session) -> None:
    first = queries.add_source_file(session, sha256="a", path="x", kind="csv", size=1, version="1")
    assert queries.add_source_file(session, sha256="a", path="moved", kind="csv", size=1, version="1") == first
    assert queries.add_source_file(session, sha256="b", path="x", kind="csv", size=1, version="1") != first


def test_the_pristine_energy_is_that_of_the_level(session: Session, ids: Any) -> None:
    assert queries.pristine_energy(session, ids.supercell, ids.level) is None
    add_result(session, ids, [3], energy=-100.0)
    add_result(session, ids, [], energy=-200.0)
    hse = queries.add_level(session, **LEVEL)
    assert queries.pristine_energy(session, ids.supercell, ids.level) == -200.0
    assert queries.pristine_energy(session, ids.supercell, hse) is None


def test_labelled_rows_are_those_of_one_level_without_the_pristine_one(session: Session, ids: Any) -> None:
    hse = queries.add_level(session, **LEVEL)
    add_result(session, ids, [])
    first, second = add_result(session, ids, [3]), add_result(session, ids, [3, 4], dataset="other")
    third = add_result(session, ids, [3], level=hse, dataset="hse")

    def found(**selection: Any) -> list[int]:
        return [row[0].id for row in queries.labelled_rows(session, **selection)]

    assert found(level_id=ids.level) == [first, second]
    assert found(level_id=hse) == [third]
    assert found(level_id=ids.level, datasets=["other"]) == [second]
    assert found(level_id=ids.level, host_ids=[ids.host]) == [first, second]
    assert found(level_id=ids.level, host_ids=[ids.host + 1]) == []
    _, host, supercell, sites, types = queries.labelled_rows(session, level_id=ids.level)[1]
    assert (host, supercell, sites, types) == (ids.host, ids.supercell, [3, 4], [2048, 2048])


def test_the_newest_finished_model_is_taken_unless_one_is_named(session: Session, ids: Any) -> None:
    with pytest.raises(UnknownNameError, match="no model is finished; there are: m1"):
        queries.model_by_name(session, None)
    with pytest.raises(InputError, match="model m1 is waiting"):
        queries.model_by_name(session, "m1")
    with pytest.raises(UnknownNameError, match="no model is called 'm9'; there are: m1"):
        queries.model_by_name(session, "m9")
    for name in ("m2", "m3"):
        session.add(
            TrainedModel(
                name=name, level_id=ids.level, properties=["homo"], settings={}, seed=1, state="finished", weights=b"w"
            )
        )
        session.flush()
    assert queries.model_by_name(session, None).name == "m3"
    assert queries.model_by_name(session, "m2").name == "m2"


def test_the_only_supercell_need_not_be_named(session: Session, ids: Any) -> None:
    assert queries.supercell_id_of(session, "MoS2", None) == ids.supercell
    assert queries.supercell_id_of(session, "MoS2", "8x8") == ids.supercell
    with pytest.raises(UnknownNameError, match="host MoS2 has no supercell 5x5; it has 8x8"):
        queries.supercell_id_of(session, "MoS2", "5x5")
    session.execute(
        text(
            "INSERT INTO supercells (host_id, matrix, label, n_sites, n_operations) "
            "VALUES (:host, '{4,0,0,0,4,0,0,0,1}', '4x4', 48, 192)"
        ),
        vars(ids),
    )
    with pytest.raises(InputError, match="has the supercells 8x8, 4x4; choose one"):
        queries.supercell_id_of(session, "MoS2", None)
    session.add(
        Host(name="BN", formula="BN", lattice=[1.0] * 9, species=["B"], positions=[0.0] * 3, is_layer=True, source="t")
    )
    session.flush()
    with pytest.raises(UnknownNameError, match="host BN has no supercell ; it has none"):
        queries.supercell_id_of(session, "BN", None)


def test_arrangements_are_added_beyond_one_statement_and_keep_their_id(session: Session, ids: Any) -> None:
    rows = {(2048 + left, 3000 + right): ids.pair for left in range(75) for right in range(80)}
    found = queries.arrangement_ids(session, rows | {(2048,): ids.vacancy})
    assert found[(2048,)] == ids.one
    assert len(found) == len(set(found.values())) == 6001
    assert queries.arrangement_ids(session, {(2048, 3000): ids.pair}) == {(2048, 3000): found[(2048, 3000)]}
    assert queries.arrangement_ids(session, {}) == {}
    stored = session.get_one(Arrangement, found[(2050, 3001)])
    assert (stored.defect_types, stored.composition_id) == ([2050, 3001], ids.pair)


def test_threads_that_add_the_same_arrangements_at_once_agree(clean_engine: Engine, committed_ids: Any) -> None:
    rows = {(2048, 3000 + n): committed_ids.pair for n in range(300)}
    found: list[dict[Any, int]] = []

    def add(order: int) -> None:
        with session_scope(clean_engine) as session:
            found.append(queries.arrangement_ids(session, dict(list(rows.items())[::order])))

    threads = [threading.Thread(target=add, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(ids == found[0] for ids in found)


def finish_campaign(session: Session, campaign_id: int) -> None:
    """Without its counts, at which this module does not look."""
    session.execute(text("ALTER TABLE campaigns DISABLE TRIGGER campaigns_finish"))
    session.execute(
        text("UPDATE campaigns SET state = 'finished', finished_at = now() WHERE id = :id"), {"id": campaign_id}
    )
    session.execute(text("ALTER TABLE campaigns ENABLE TRIGGER campaigns_finish"))


def test_only_a_finished_campaign_that_keeps_all_has_scored(session: Session, ids: Any) -> None:
    assert queries.scored_campaign(session, ids.model, ids.supercell) is None
    finish_campaign(session, ids.campaign)
    found = queries.scored_campaign(session, ids.model, ids.supercell)
    assert found is not None
    assert found.id == ids.campaign
    assert queries.scored_campaign(session, ids.model + 1, ids.supercell) is None
    assert queries.scored_campaign(session, ids.model, ids.supercell + 1) is None
    assert queries.scored_campaign(session, ids.model, ids.supercell, max_defects=2) is not None
    assert queries.scored_campaign(session, ids.model, ids.supercell, max_defects=3) is None
    session.execute(text("UPDATE campaigns SET storage = 'best', query = '{}'"))
    assert queries.scored_campaign(session, ids.model, ids.supercell) is None


def test_a_campaign_is_found_by_name_and_an_unknown_one_names_those_there_are(session: Session, ids: Any) -> None:
    assert queries.campaign_by_name(session, "c1").id == ids.campaign
    with pytest.raises(UnknownNameError, match=r"no campaign is called 'c9'; there are: c1 \(running\); plan one"):
        queries.campaign_by_name(session, "c9")
    session.execute(text("DELETE FROM campaigns"))
    with pytest.raises(UnknownNameError, match="there are: none"):
        queries.campaign_by_name(session, "c1")
    assert session.query(Chunk).count() == session.query(Campaign).count() == 0
