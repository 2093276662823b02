"""What a calculation is worth, and how rounds of several supercells are put together.

Gains are compared with integrals over the predicted distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Supercell
from screening.errors import InputError, NothingLeftError
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.rounds import Proposal, propose
from tests.pipeline.made_campaigns import add_finished
from tests.pipeline.test_designs import add_level

PROPERTIES = ["formation_energy", "formation_energy_per_site", "homo_lumo_gap_min"]
TYPES = "v_S,W_Mo"
SINGLE = {"v_S": 2.2, "W_Mo": 0.2}  # eV
SULPHUR = -3.0  # eV, by which sulphur is below its reference where molybdenum is at its own
REFERENCES = {"Mo": -10.0, "S": -4.0, "W": -12.0}
LABELS = ("2x2", "3x3")
BOTH = [{"host": "MoS2", "supercell": label} for label in LABELS]
Values = NDArray[np.float64]
Place = tuple[str, tuple[int, ...], tuple[int, ...]]  # supercell, sites, defect types
WINDOW = "homo_lumo_gap_min=0.8:1.4"


@dataclass(frozen=True)
class Predicted:
    """A candidate with what is said of it."""

    configuration: Configuration
    multiplicity: int
    values: Mapping[str, float]

    @property
    def n_vacancies(self) -> int:
        return sum(DefectType.from_code(code).name == "v_S" for code in self.configuration.defect_types)

    def mean(self, name: str, sulphur: float = 0.0) -> float:
        """Predicted value where the potential of sulphur is so many eV above its reference."""
        shift = {"formation_energy": sulphur * self.n_vacancies}
        shift["formation_energy_per_site"] = shift["formation_energy"] / self.configuration.n_defects
        return self.values[f"{name}_mean"] + shift.get(name, 0.0)

    def std(self, name: str) -> float:
        return self.values[f"{name}_std"]

    @property
    def probability(self) -> float:
        gap = norm(self.mean("homo_lumo_gap_min"), self.std("homo_lumo_gap_min"))
        return float(gap.cdf(1.4) - gap.cdf(0.8))


class World:
    """2x2 and 3x3 MoS2 with every configuration of one and two of v_S and W_Mo, scored by one model."""

    def __init__(self, session: Session) -> None:
        self.session, self.level_id = session, add_level(session)
        for element, energy in REFERENCES.items():
            session.add(tables.ChemicalPotential(level_id=self.level_id, element=element, energy=energy, source="bulk"))
        self.model = self.add_model("one")
        self.stored = {
            label: add_supercell(session, Supercell.parse(catalogue_host("MoS2"), label)) for label in LABELS
        }
        self.pristine: dict[str, int] = {}
        self.candidates: dict[Place, Predicted] = {}
        for number, label in enumerate(LABELS):
            self.pristine[label] = self.add_pristine(label)
            self.score(label, self.model, np.random.default_rng(number))

    def add_model(self, name: str) -> tables.TrainedModel:
        model = tables.TrainedModel(
            name=name, level_id=self.level_id, properties=PROPERTIES, settings={}, seed=0, state="finished",
            weights=b"w",
        )  # fmt: skip
        self.session.add(model)
        self.session.flush()
        return model

    def add_pristine(self, label: str) -> int:
        cell = REFERENCES["Mo"] + 2 * REFERENCES["S"] + 2 * SULPHUR
        n_cells = self.stored[label].supercell.n_sites // 3
        return self.add_result(label, Configuration((), ()), energy=cell * n_cells)

    def add_result(self, label: str, configuration: Configuration, **values: float) -> int:
        (configuration_id,) = add_configurations(self.session, self.stored[label], [configuration])
        key = {"configuration_id": configuration_id, "level_id": self.level_id}
        calculation_id = queries.get_or_add(self.session, tables.Calculation, key, state="finished")
        self.session.add(
            tables.CalculationResult(
                calculation_id=calculation_id, dataset="d", row_name=f"{label} {configuration_id}",
                **{"energy": -1.0} | values,
            )
        )  # fmt: skip
        self.session.flush()
        return calculation_id

    def score(self, label: str, model: tables.TrainedModel, generator: np.random.Generator) -> None:
        stored = self.stored[label]

        def predict(_: int, configuration: Configuration) -> dict[str, float]:
            names = [DefectType.from_code(code).name for code in configuration.defect_types]
            energy = sum(SINGLE[name] for name in names) + float(generator.normal(0.0, 0.2))
            std, gap, gap_std = generator.uniform((0.05, 0.4, 0.05), (0.4, 1.8, 0.3)).tolist()
            n = configuration.n_defects
            return {
                "formation_energy_mean": energy, "formation_energy_std": std,
                "formation_energy_per_site_mean": energy / n, "formation_energy_per_site_std": std / n,
                "homo_lumo_gap_min_mean": gap, "homo_lumo_gap_min_std": gap_std,
            }  # fmt: skip

        space = SearchSpace(stored.supercell, parse_defect_types(TYPES), 2)
        campaign = add_finished(self.session, stored, space, model, predict)
        rows = self.session.execute(
            select(tables.Candidate, tables.Arrangement.defect_types)
            .join(tables.Arrangement, tables.Arrangement.id == tables.Candidate.arrangement_id)
            .where(tables.Candidate.campaign_id == campaign.id)
        )
        for row, defect_types in rows:
            configuration = Configuration(tuple(row.sites), tuple(defect_types))
            values = {
                f"{name}_{kind}": getattr(row, f"{name}_{kind}") for name in PROPERTIES for kind in ("mean", "std")
            }
            self.candidates[label, *_key(configuration)] = Predicted(configuration, row.multiplicity, values)

    def of(self, *labels: str) -> dict[Place, Predicted]:
        return {key: found for key, found in self.candidates.items() if key[0] in labels}


@pytest.fixture
def world(session: Session) -> World:
    return World(session)


def _key(configuration: Configuration) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return configuration.sites, configuration.defect_types


def place_of(session: Session, proposal: Proposal) -> Place:
    """Supercell, sites and defect types of what is stored of a proposal."""
    row = session.execute(
        select(tables.Supercell.label, tables.Configuration.sites, tables.Configuration.defect_types)
        .join(tables.Configuration, tables.Configuration.supercell_id == tables.Supercell.id)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .where(tables.Calculation.id == proposal.calculation_id)
    ).one()
    assert proposal.place == f"MoS2 {row.label}"
    return row.label, tuple(row.sites), tuple(row.defect_types)


def expected_worth(
    found: Mapping[Place, Predicted], key: Callable[[Predicted, Values], Values], *, of: str, n: int,
    known: float | None = None, sulphur: float = 0.0,
) -> dict[Place, float]:  # fmt: skip
    """Probability times the gain over the n-th best key that is likely or the best known one, whichever is worse.

    Args:
        key: what is the smaller the better, of a candidate and values of its property `of`.
    """
    likely = [row for row in found.values() if row.probability >= 0.5]
    assert len(likely) > n
    beaten = sorted(float(key(row, np.array(row.mean(of, sulphur)))) for row in likely)[n - 1]
    beaten = beaten if known is None else max(beaten, known)

    def gain(row: Predicted) -> float:
        mean, std = row.mean(of, sulphur), row.std(of)
        values = np.linspace(mean - 8 * std, mean + 8 * std, 20_001)
        return float(np.trapezoid(np.maximum(0.0, beaten - key(row, values)) * norm.pdf(values, mean, std), values))

    return {place: row.probability * gain(row) for place, row in found.items()}


def itself(_: Predicted, values: Values) -> Values:
    return values


def has_these_worths(session: Session, proposals: list[Proposal], worth: Mapping[Place, float]) -> None:
    """Every proposal is worth what is expected, and the first of each supercell is its best."""
    places = [place_of(session, proposal) for proposal in proposals]
    assert [proposal.worth for proposal in proposals] == pytest.approx([worth[place] for place in places], rel=1e-4)
    for label in {label for label, _, _ in places}:
        first = next(place for place in places if place[0] == label)
        assert worth[first] == max(value for place, value in worth.items() if place[0] == label)


@pytest.mark.parametrize(("potentials", "sulphur"), [("reference", 0.0), ("metal-rich", SULPHUR)])
def test_worth_is_the_gain_at_the_chemical_potentials_of_the_query(
    world: World, session: Session, potentials: str, sulphur: float
) -> None:
    known = next(row for row in world.of("3x3").values() if row.n_vacancies == 2)
    world.add_result(
        "3x3", known.configuration, formation_energy=2.6, formation_energy_per_site=1.3, homo_lumo_gap_min=1.0
    )
    query = DesignQuery.of(host="MoS2", supercell="3x3", windows=[WINDOW], potentials=potentials)
    proposals = propose(session, query, n=6)
    open_ones = {place: row for place, row in world.of("3x3").items() if row is not known}
    worth = expected_worth(open_ones, itself, of="formation_energy_per_site", n=6, known=1.3 + sulphur, sulphur=sulphur)
    places = [place_of(session, proposal) for proposal in proposals]
    assert [proposal.worth for proposal in proposals] == pytest.approx([worth[place] for place in places], rel=1e-4)


def test_worth_near_a_target_is_how_much_nearer_it_comes(world: World, session: Session) -> None:
    query = DesignQuery.of(
        host="MoS2", supercell="3x3", windows=[WINDOW], sort="formation_energy", direction="closest", target=1.9
    )
    proposals = propose(session, query, n=4)
    worth = expected_worth(world.of("3x3"), lambda _, values: np.abs(values - 1.9), of="formation_energy", n=4)
    has_these_worths(session, proposals, worth)


def test_worth_of_a_concentration_counts_the_places_of_a_defect(world: World, session: Session) -> None:
    query = DesignQuery.of(host="MoS2", supercell="3x3", windows=[WINDOW], sort="concentration", temperature=1500.0)
    proposals = propose(session, query, n=4)
    kt = 8.617333e-5 * 1500.0
    worth = expected_worth(
        world.of("3x3"), lambda row, values: values - kt * np.log(row.multiplicity), of="formation_energy", n=4
    )
    has_these_worths(session, proposals, worth)


def test_two_supercells_are_one_contest(world: World, session: Session) -> None:
    query = DesignQuery.of(places=BOTH, windows=[WINDOW])
    proposals = propose(session, query, n=8)
    worth = expected_worth(world.of(*LABELS), itself, of="formation_energy_per_site", n=8)
    has_these_worths(session, proposals, worth)
    assert {place_of(session, proposal)[0] for proposal in proposals} == set(LABELS)
    assert worth[place_of(session, proposals[0])] == max(worth.values())
    rounds = session.scalars(select(tables.Round)).all()
    assert [DesignQuery.model_validate(round_.query) for round_ in rounds] == [query]
    assert {proposal.round_id for proposal in proposals} == {rounds[0].id}


def test_rounds_of_two_supercells_take_every_candidate_once(world: World, session: Session) -> None:
    query = DesignQuery.of(places=BOTH)
    n = len(world.candidates)
    proposals = [*propose(session, query, n=n - 5), *propose(session, query, n=n)]
    assert sorted(place_of(session, proposal) for proposal in proposals) == sorted(world.candidates)
    with pytest.raises(NothingLeftError, match=r"from \d+ candidates, 1 to 2 of .*; \d+ candidates, 1 to 2 of"):
        propose(session, query, n=1)


def test_of_two_supercells_the_one_that_is_calculated_faster_comes_first(world: World, session: Session) -> None:
    session.execute(update(tables.Candidate).values(
        formation_energy_per_site_mean=1.0, formation_energy_per_site_std=0.1,
    ))  # fmt: skip
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for label, seconds in (("2x2", 1.0), ("3x3", 50.0)):
        session.execute(
            update(tables.Calculation)
            .where(tables.Calculation.id == world.pristine[label])
            .values(started_at=began, finished_at=began + timedelta(seconds=seconds))
        )
    proposals = propose(session, DesignQuery.of(places=BOTH), n=3)
    assert [proposal.place for proposal in proposals] == ["MoS2 2x2"] * 3


def test_a_round_is_of_one_goal_one_model_and_no_single_campaign_of_several(world: World, session: Session) -> None:
    front = DesignQuery.of(host="MoS2", supercell="3x3", pareto="gap=highest,formation_energy=lowest")
    with pytest.raises(InputError, match=r"asks for the front of .*; .* is known for one goal only: sort by one"):
        propose(session, front, n=1)
    campaign = session.scalars(select(tables.Campaign.name)).first()
    with pytest.raises(InputError, match="is about one supercell, the design query about MoS2 2x2, MoS2 3x3"):
        propose(session, DesignQuery.of(places=BOTH), n=1, campaign_name=campaign)
    world.score("2x2", world.add_model("another"), np.random.default_rng(9))
    with pytest.raises(InputError, match="by another for MoS2 2x2, one for MoS2 3x3; a round is chosen by one model"):
        propose(session, DesignQuery.of(places=BOTH), n=1)
    assert len(propose(session, DesignQuery.of(places=BOTH), n=1, model_name="one")) == 1
