"""SQL of design queries with filters, pages, fronts and places, against a plain twin in Python."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from screening.database.branches import load_branch
from screening.database.campaigns import add_partition, index_partition
from screening.database.design_query import DesignQuery
from screening.database.query_sql import Cursor, compile_query, to_sql
from screening.database.query_terms import BOLTZMANN, Branch
from screening.database.tables import (
    Arrangement,
    Campaign,
    CampaignCorrelation,
    Candidate,
    Composition,
    DefectType,
    IntervalMultiple,
    SearchSpace,
)
from screening.database.window_probability import NORMAL_MULTIPLE, Spreads, loadings_of, slope_of
from screening.errors import InputError

V_S, SE_S, V_MO = 128 * 16, 128 * 16 + 34, 128 * 42
NAMES = {V_S: "v_S", SE_S: "Se_S", V_MO: "v_Mo"}
GAP, PER_SITE, ENERGY, MAG = "homo_lumo_gap_min", "formation_energy_per_site", "formation_energy", "total_mag"


@dataclass(frozen=True)
class Row:
    """A candidate as it is stored."""

    id: int
    types: tuple[int, ...]
    multiplicity: int
    closest: float | None
    farthest: float | None
    mean: dict[str, float]
    std: dict[str, float]

    @property
    def n(self) -> int:
        return len(self.types)


@pytest.fixture
def rows(session: Session, ids: Any) -> list[Row]:
    """Candidates of one to three defects of three types; means on a grid, so that they tie."""
    session.add(DefectType(id=V_MO, name="v_Mo", removed="Mo"))
    session.get_one(SearchSpace, ids.search_space).defect_types = [V_S, SE_S, V_MO]
    session.flush()
    rng = np.random.default_rng(3)
    made = []
    arrangements = [types for n in (1, 2, 3) for types in itertools.product((V_S, SE_S, V_MO), repeat=n)]
    for number, types in enumerate(arrangements):
        arrangement_id = arrangement(session, types)
        for i in range(12):
            grid = {name: float(np.float32(rng.integers(0, 25) / 10)) for name in (GAP, PER_SITE, MAG)}
            mean = grid | {ENERGY: float(np.float32(grid[PER_SITE] * len(types)))}
            std = {name: float(np.float32(rng.choice([0.05, 0.3, 1.0]))) for name in mean}
            closest = float(np.float32(rng.integers(30, 60) / 10)) if len(types) > 1 else None
            row = Row(
                number * 100 + i, types, int(rng.integers(1, 9)), closest,
                None if closest is None else closest + 1.0, mean, std,
            )  # fmt: skip
            made.append(row)
            values = {f"{name}_{part}": v for part, of in (("mean", mean), ("std", std)) for name, v in of.items()}
            session.add(
                Candidate(
                    id=row.id, campaign_id=ids.campaign, arrangement_id=arrangement_id, multiplicity=row.multiplicity,
                    sites=list(range(row.n)), closest=row.closest, farthest=row.farthest, **values,
                )
            )  # fmt: skip
    session.flush()
    return made


def arrangement(session: Session, types: tuple[int, ...]) -> int:
    """The id of an arrangement, which is added with its composition if it is not there."""
    found = session.scalar(select(Arrangement.id).where(Arrangement.defect_types == list(types)))
    if found is not None:
        return found
    distinct = sorted(set(types))
    counts = [types.count(code) for code in distinct]
    label = "+".join(f"{n}*{NAMES[code]}" if n > 1 else NAMES[code] for code, n in zip(distinct, counts, strict=True))
    composition = session.scalar(
        select(Composition).where(Composition.defect_types == distinct, Composition.counts == counts)
    )
    if composition is None:
        composition = Composition(label=label, defect_types=distinct, counts=counts, n_defects=len(types))
        session.add(composition)
        session.flush()
    added = Arrangement(composition_id=composition.id, defect_types=list(types))
    session.add(added)
    session.flush()
    return added.id


def branch_of(session: Session, ids: Any, query: DesignQuery) -> Branch:
    return load_branch(session, session.get_one(Campaign, ids.campaign), query)


def ask(session: Session, query: DesignQuery, branch: Branch) -> list[Any]:
    return list(session.execute(compile_query(query, [branch])).all())


FILTERS: dict[str, tuple[dict[str, Any], Any]] = {
    "types": ({"types": ["v_S", "Se_S"]}, lambda r: set(r.types) <= {V_S, SE_S}),
    "required": ({"required": ["v_S", "v_Mo"]}, lambda r: {V_S, V_MO} <= set(r.types)),
    "forbidden": ({"forbidden": "v_Mo"}, lambda r: V_MO not in r.types),
    "counts": ({"counts": ["v_S:1-2", "Se_S:0"]}, lambda r: 1 <= r.types.count(V_S) <= 2 and SE_S not in r.types),
    "at least": ({"counts": "v_S:2-"}, lambda r: r.types.count(V_S) >= 2),
    "sizes": ({"min_defects": 2, "max_defects": 2}, lambda r: r.n == 2),
    "density per cell": ({"density": "0.02:0.04cell"}, lambda r: 0.02 <= r.n / 64 <= 0.04),
    "separation": ({"min_separation": 4.0}, lambda r: r.n == 1 or r.closest > 3.999),
    "reach": ({"max_separation": 5.0}, lambda r: r.n == 1 or r.farthest < 5.001),
    "types and a window": (
        {"types": ["v_S", "v_Mo"], "windows": "gap=0.85:1.55"},
        lambda r: set(r.types) <= {V_S, V_MO} and probability(r, GAP, 0.85, 1.55) >= 0.5 - 1e-12,
    ),
}  # fmt: skip


def probability(row: Row, name: str, low: float, high: float) -> float:
    return float(norm.cdf(high, row.mean[name], row.std[name]) - norm.cdf(low, row.mean[name], row.std[name]))


@pytest.mark.parametrize("limit", [7, 1000, 200_000])  # walks by arrangement, and all at once
@pytest.mark.parametrize("sort", [PER_SITE, GAP])
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_keeps_what_the_twin_keeps_in_its_order(
    session: Session, ids: Any, rows: list[Row], name: str, sort: str, limit: int
) -> None:
    fields, wanted = FILTERS[name]
    query = DesignQuery.of(host="MoS2", sort=sort, limit=limit, **fields)
    expected = sorted((row for row in rows if wanted(row)), key=lambda row: (row.mean[sort], row.id))[:limit]
    found = ask(session, query, branch_of(session, ids, query))
    assert [row.candidate for row in found] == [row.id for row in expected]
    assert 0 < len(expected) < len(rows)


@pytest.mark.parametrize("direction", ["lowest", "highest"])
def test_highest_first_within_types(session: Session, ids: Any, rows: list[Row], direction: str) -> None:
    query = DesignQuery.of(host="MoS2", types="v_S,Se_S", direction=direction, limit=25)
    sign = 1 if direction == "lowest" else -1
    wanted = [row for row in rows if set(row.types) <= {V_S, SE_S}]
    expected = sorted(wanted, key=lambda row: (sign * row.mean[PER_SITE], row.id))[:25]
    assert [row.candidate for row in ask(session, query, branch_of(session, ids, query))] == [r.id for r in expected]


SHIFTS = {V_S: 0.25, SE_S: -0.4}


def shifted(row: Row) -> Row:
    shift = sum(SHIFTS.get(code, 0.0) for code in row.types)
    energies = {ENERGY: row.mean[ENERGY] + shift, PER_SITE: row.mean[PER_SITE] + shift / row.n}
    return Row(row.id, row.types, row.multiplicity, row.closest, row.farthest, row.mean | energies, row.std)


@pytest.mark.parametrize("limit", [9, 200_000])
@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, lambda r: r.mean[PER_SITE]),
        ({"sort": ENERGY, "direction": "highest"}, lambda r: -r.mean[ENERGY]),
        ({"windows": "formation_energy_per_site=0.5:1.5"}, lambda r: r.mean[PER_SITE]),
        ({"direction": "closest", "target": 1.13}, lambda r: abs(r.mean[PER_SITE] - 1.13)),
        ({"sort": ENERGY, "direction": "closest", "target": 2.6}, lambda r: abs(r.mean[ENERGY] - 2.6)),
        ({"sort": GAP}, lambda r: r.mean[GAP]),
    ],
)
def test_potentials_shift_energies_by_composition(
    session: Session, ids: Any, rows: list[Row], fields: dict[str, Any], key: Any, limit: int
) -> None:
    query = DesignQuery.of(host="MoS2", potentials="S-rich", limit=limit, **fields)
    moved = [shifted(row) for row in rows]
    if query.windows:
        moved = [row for row in moved if probability(row, PER_SITE, 0.5, 1.5) >= 0.5]
    expected = sorted(moved, key=lambda row: (round(key(row), 9), row.id))[:limit]
    found = ask(session, query, Branch(ids.campaign, shifts=SHIFTS))
    assert [round(row.key, 6) for row in found] == pytest.approx([round(key(row), 6) for row in expected], abs=2e-6)
    of_id = {row.id: row for row in moved}
    for row in found:
        assert row.formation_energy_mean == pytest.approx(of_id[row.candidate].mean[ENERGY], abs=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"direction": "highest", "sort": GAP}, {"types": "v_S,Se_S"},
        {"sort": "probability", "windows": "gap=0.5:2"},
        {"sort": GAP, "direction": "closest", "target": 1.2}, {"windows": "gap=0.5:2"},
        {"sort": "concentration", "temperature": 1000},
    ],
)  # fmt: skip
def test_pages_put_together_are_the_whole(session: Session, ids: Any, rows: list[Row], fields: dict[str, Any]) -> None:
    whole = DesignQuery.of(host="MoS2", limit=1000, **fields)
    branch = branch_of(session, ids, whole)
    expected = [row.candidate for row in ask(session, whole, branch)]
    page = whole.model_copy(update={"limit": 37})
    found: list[int] = []
    after = None
    while True:
        part = session.execute(compile_query(page, [branch], after=after)).all()
        found += [row.candidate for row in part]
        if len(part) < 37:
            break
        last = Cursor(part[-1].key, part[-1].campaign_id, part[-1].candidate)
        after = Cursor.decode(last.encode(page, [branch]), whole, [branch])
    assert found == expected
    assert len(expected) > 74


def test_a_cursor_of_another_query_or_none_at_all_is_refused() -> None:
    query, branch = DesignQuery.of(host="MoS2"), Branch(2, shifts=SHIFTS)
    cursor = Cursor(1.0, 2, 3).encode(query, [branch])
    for other, answering in (
        (DesignQuery.of(host="MoS2", sort=GAP), branch), (query, Branch(4, shifts=SHIFTS)), (query, Branch(2)),
    ):  # fmt: skip
        with pytest.raises(InputError, match="another design query, or another campaign or other chemical potentials"):
            Cursor.decode(cursor, other, [answering])
    assert Cursor.decode(cursor, query, [branch]) == Cursor(1.0, 2, 3)
    for wrong in ("nothing", "e30", ""):
        with pytest.raises(InputError, match="is no cursor"):
            Cursor.decode(wrong, query, [branch])


def test_the_closest_come_from_both_sides(session: Session, ids: Any, rows: list[Row]) -> None:
    query = DesignQuery.of(host="MoS2", sort=GAP, direction="closest", target=1.24, limit=50)
    expected = sorted(rows, key=lambda row: (round(abs(row.mean[GAP] - 1.24), 9), row.id))[:50]
    found = ask(session, query, branch_of(session, ids, query))
    assert [round(row.key, 6) for row in found] == [round(abs(row.mean[GAP] - 1.24), 6) for row in expected]
    assert {row.homo_lumo_gap_min_mean > 1.24 for row in found} == {True, False}


def test_concentration_is_places_times_boltzmann(session: Session, ids: Any, rows: list[Row]) -> None:
    query = DesignQuery.of(host="MoS2", sort="concentration", temperature=1200, limit=1000)
    branch = branch_of(session, ids, query)
    area = 64 * 3.19 * 2.763e-16  # cm^2
    assert branch.area == pytest.approx(area, rel=1e-6)
    found = ask(session, query, branch)
    of_id = {row.id: row for row in rows}
    for row in found:
        made = of_id[row.candidate]
        expected = made.multiplicity / area * math.exp(-made.mean[ENERGY] / (BOLTZMANN * 1200))
        assert row.concentration == pytest.approx(expected, rel=1e-6)
    assert [row.concentration for row in found] == sorted((row.concentration for row in found), reverse=True)


@pytest.mark.parametrize(
    "pareto", ["gap=highest,formation_energy_per_site=lowest", "gap=highest,formation_energy=lowest,total_mag=highest"]
)
def test_the_front_is_what_comparing_all_with_all_leaves(
    session: Session, ids: Any, rows: list[Row], pareto: str
) -> None:
    query = DesignQuery.of(host="MoS2", pareto=pareto, types="v_S,Se_S", limit=1000)
    signs = {goal.property: 1 if goal.direction == "lowest" else -1 for goal in query.pareto}
    wanted = [row for row in rows if set(row.types) <= {V_S, SE_S}]
    values = {row.id: tuple(sign * row.mean[name] for name, sign in signs.items()) for row in wanted}

    def is_beaten(mine: tuple[float, ...]) -> bool:
        return any(all(o <= m for o, m in zip(o_, mine, strict=True)) and o_ != mine for o_ in values.values())

    expected = {i for i, mine in values.items() if not is_beaten(mine)}
    found = [row.candidate for row in ask(session, query, branch_of(session, ids, query))]
    assert set(found) == expected
    assert len(found) == len(expected) > 1
    assert [values[i][0] for i in found] == sorted(values[i][0] for i in found)


def test_several_places_are_ranked_together(session: Session, ids: Any, rows: list[Row]) -> None:
    other = Campaign(name="c2", search_space_id=ids.search_space, storage="all")
    session.add(other)
    session.flush()
    add_partition(session, other.id)
    session.execute(
        text(
            "INSERT INTO candidates (id, campaign_id, arrangement_id, multiplicity, sites, closest, farthest, "
            "formation_energy_per_site_mean, formation_energy_per_site_std) SELECT id, :other, arrangement_id, "
            "multiplicity, sites, closest, farthest, formation_energy_per_site_mean + 0.05, "
            "formation_energy_per_site_std FROM candidates WHERE campaign_id = :campaign"
        ),
        {"other": other.id, "campaign": ids.campaign},
    )
    query = DesignQuery.of(places=["MoS2 8x8", "WS2 8x8"], limit=40)
    branches = [Branch(ids.campaign), Branch(other.id, place=1)]
    found = session.execute(compile_query(query, branches)).all()
    both = [(row.mean[PER_SITE] + 0.05 * place, place, row.id) for row in rows for place in (0, 1)]
    expected = sorted(both, key=lambda found: (round(found[0], 5), found[1], found[2]))[:40]
    assert [(row.place, row.candidate) for row in found] == [(place, i) for _, place, i in expected]
    second = session.execute(
        compile_query(query, branches, after=Cursor(found[19].key, found[19].campaign_id, found[19].candidate))
    ).all()
    assert [(row.place, row.candidate) for row in second[:20]] == [(row.place, row.candidate) for row in found[20:]]


def test_a_type_that_one_place_has_and_another_one_lacks_leaves_that_one_out(
    session: Session, ids: Any, rows: list[Row]
) -> None:
    query = DesignQuery.of(host="MoS2", required="v_W", limit=5)
    assert ask(session, query, Branch(ids.campaign)) == []
    query = DesignQuery.of(host="MoS2", forbidden="v_W", limit=5)
    assert len(ask(session, query, Branch(ids.campaign))) == 5


def test_every_statement_runs_as_it_is_printed(session: Session, ids: Any, rows: list[Row]) -> None:
    fields = {
        "types": "v_S,Se_S", "windows": ["gap=0.5:2", "total_mag=0.1:"], "temperature": 300, "confidence": 0.2,
    }  # fmt: skip
    spreads = Spreads({GAP: (1.2, 0.8)}, {GAP: (0.7, 0.6), MAG: (-0.7, -0.6)})
    codes = {"v_S": V_S, "Se_S": SE_S}
    for more in ({}, {"direction": "closest", "target": 1.0}, {"pareto": "gap=highest,formation_energy=lowest"}):
        query = DesignQuery.of(host="MoS2", **fields, **more)
        statement = compile_query(query, [Branch(ids.campaign, codes=codes, spreads=spreads, shifts=SHIFTS)])
        printed = [row.candidate for row in session.execute(text(to_sql(statement)))]
        assert printed == [row.candidate for row in session.execute(statement)]
        assert printed


@pytest.mark.parametrize("multiple", [1.3, NORMAL_MULTIPLE, 3.2])
def test_a_window_of_the_standard_deviation_holds_68_percent_and_one_of_the_multiple_95(
    session: Session, ids: Any, rows: list[Row], multiple: float
) -> None:
    chosen = next(row for row in rows if row.n == 2 and row.std[GAP] > 0.2)
    session.add(IntervalMultiple(model_id=ids.model, host="MoS2", n_defects=1, property=GAP, multiple=9.0))
    session.add(IntervalMultiple(model_id=ids.model, host="MoS2", n_defects=2, property=GAP, multiple=multiple))
    session.flush()
    for width, expected in ((1.0, 0.682689492), (multiple, 0.95), (0.5, 0.382924923)):
        low, high = (chosen.mean[GAP] + sign * width * chosen.std[GAP] for sign in (-1, 1))
        query = DesignQuery.of(
            host="MoS2", windows=[{"property": GAP, "low": low, "high": high}], confidence=0.1, limit=1000
        )
        found = {row.candidate: row.probability for row in ask(session, query, branch_of(session, ids, query))}
        assert found[chosen.id] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("correlation", "tolerance"), [(0.0, 1e-6), (0.5, 1e-4), (-0.5, 1e-4), (0.8, 5e-3), (-0.8, 5e-3)]
)
def test_two_windows_hold_as_the_bivariate_normal_distribution_says(
    session: Session, ids: Any, rows: list[Row], correlation: float, tolerance: float
) -> None:
    for n_defects in (1, 2, 3):
        session.add(
            CampaignCorrelation(
                campaign_id=ids.campaign, n_defects=n_defects, property=GAP, other=MAG, correlation=correlation
            )
        )
    session.flush()
    query = DesignQuery.of(host="MoS2", windows=["gap=0.9:1.6", "total_mag=0.4:1.9"], confidence=0.2, limit=1000)
    found = ask(session, query, branch_of(session, ids, query))
    of_id = {row.id: row for row in rows}
    assert len(found) > 30
    for row in found[:60]:
        made = of_id[row.candidate]
        low, high = (
            [(end - made.mean[name]) / made.std[name] for end, name in ((a, GAP), (b, MAG))]
            for a, b in ((0.9, 0.4), (1.6, 1.9))
        )
        joint = multivariate_normal([0.0, 0.0], [[1.0, correlation], [correlation, 1.0]])
        expected = joint.cdf(high, lower_limit=low)
        assert row.probability == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, -1)])
def test_three_windows_hold_as_draws_from_the_trivariate_normal_distribution_do(
    session: Session, ids: Any, rows: list[Row], signs: tuple[int, int, int]
) -> None:
    names, limits = (GAP, MAG, PER_SITE), ((0.9, 1.6), (0.4, 1.9), (0.4, 1.6))
    correlations = np.array([[1.0, 0.5, 0.4], [0.5, 1.0, 0.3], [0.4, 0.3, 1.0]]) * np.outer(signs, signs)
    loadings = loadings_of(correlations)
    spreads = Spreads({}, {name: (float(loading),) for name, loading in zip(names, loadings, strict=True)})
    windows = [f"{name}={low}:{high}" for name, (low, high) in zip(names, limits, strict=True)]
    query = DesignQuery.of(host="MoS2", windows=windows, confidence=0.1, limit=1000)
    found = ask(session, query, Branch(ids.campaign, spreads=spreads))
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(3), correlations, 200_000)
    of_id = {row.id: row for row in rows}
    assert len(found) > 20
    for row in found[:40]:
        made = of_id[row.candidate]
        values = np.array([made.mean[name] for name in names]) + draws * [made.std[name] for name in names]
        is_inside = ((values >= [low for low, _ in limits]) & (values <= [high for _, high in limits])).all(axis=1)
        assert row.probability == pytest.approx(is_inside.mean(), abs=6e-3)  # of the draws 1e-3, of the nodes the rest


def test_correlated_windows_hold_for_energies_that_are_shifted_by_arrangement(
    session: Session, ids: Any, rows: list[Row]
) -> None:
    windows = [f"{GAP}=0.7:1.9", f"{PER_SITE}=0.4:1.6"]
    query = DesignQuery.of(host="MoS2", potentials="S-rich", windows=windows, confidence=0.5, limit=1000)
    loading = 0.5**0.5
    spreads = Spreads({}, {GAP: (loading,), PER_SITE: (loading,)})
    found = {
        r.candidate: r.probability for r in ask(session, query, Branch(ids.campaign, spreads=spreads, shifts=SHIFTS))
    }
    joint = multivariate_normal([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
    expected = {}
    for row in map(shifted, rows):
        low, high = (
            [(end - row.mean[name]) / row.std[name] for end, name in ((a, GAP), (b, PER_SITE))]
            for a, b in ((0.7, 0.4), (1.9, 1.6))
        )
        expected[row.id] = float(joint.cdf(high, lower_limit=low))
    assert not [i for i, p in expected.items() if (p > 0.5 + 1e-3) != (i in found) and abs(p - 0.5) > 1e-3]
    assert 20 < len(found) < len(rows)
    assert list(found.values()) == pytest.approx([expected[i] for i in found], abs=1e-3)


def test_loadings_give_back_correlations_that_one_factor_can_hold() -> None:
    loadings = np.array([0.8, -0.6, 0.5])
    correlations = np.outer(loadings, loadings)
    np.fill_diagonal(correlations, 1.0)
    found = loadings_of(correlations)
    np.testing.assert_allclose(
        np.outer(found, found)[~np.eye(3, dtype=bool)], correlations[~np.eye(3, dtype=bool)], atol=1e-6
    )
    assert loadings_of(np.array([[1.0, 0.01], [0.01, 1.0]])).tolist() == [0.0, 0.0]
    assert slope_of(NORMAL_MULTIPLE) == 1.0


def test_types_are_looked_up_by_the_index_of_arrangements(session: Session, ids: Any, rows: list[Row]) -> None:
    index_partition(session, ids.campaign)
    session.execute(text("SET LOCAL enable_seqscan = off"))
    session.execute(text("SET LOCAL enable_sort = off"))
    query = DesignQuery.of(host="MoS2", types="v_S", limit=3)
    statement = to_sql(compile_query(query, [branch_of(session, ids, query)]))
    plan = "\n".join(session.scalars(text(f"EXPLAIN {statement}")))
    assert f"candidates_{ids.campaign}_arrangement" in plan


def test_separations_of_a_campaign_that_did_not_keep_them_are_refused(
    session: Session, ids: Any, rows: list[Row]
) -> None:
    session.execute(text("UPDATE candidates SET closest = NULL, farthest = NULL"))
    with pytest.raises(InputError, match="c1 was scanned by an older version, which did not keep the distances"):
        branch_of(session, ids, DesignQuery.of(host="MoS2", min_separation=3.0))


def test_a_density_of_a_crystal_is_none_of_a_layer(session: Session, ids: Any) -> None:
    with pytest.raises(InputError, match="density is per cm-3, and MoS2 is a layer; use cell or cm-2"):
        branch_of(session, ids, DesignQuery.of(host="MoS2", density=":1e20cm-3"))
