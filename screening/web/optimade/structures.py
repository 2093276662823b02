"""The structures that OPTIMADE serves: configurations with results, and the rows of saved rankings without.

A relation of two parts is filtered, counted and paged in SQL. What follows from a supercell and a composition alone,
such as formulas and elements, is made once for each pair that occurs and joined as a table: there are few of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from math import gcd
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    DateTime,
    Double,
    Integer,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.models import stands
from screening.database.tables import PROPERTY_COMMENTS
from screening.defects.defect_types import DefectType
from screening.pipeline.hosts import load_supercell
from screening.web.optimade.properties import OWN_COLUMNS

_KINDS: dict[str, Any] = {
    "elements": ARRAY(Text), "nelements": Integer, "elements_ratios": ARRAY(Double), "descriptive": Text,
    "reduced": Text, "hill": Text, "anonymous": Text, "dimension_types": ARRAY(Integer), "n_dimensions": Integer,
    "nperiodic_dimensions": Integer, "nsites": Integer, "n_species": Integer, "species_names": ARRAY(Text),
    "structure_features": ARRAY(Text), "n_features": Integer, "host": Text, "supercell": Text, "configuration": Text,
    "types": ARRAY(Text), "n_types": Integer, "n_defects": Integer,
}  # fmt: skip
VACANCY = "vacancy"


class Structures:
    """The relation that is filtered.

    Attributes:
        columns: by the names that properties have there.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        entries = union_all(_calculated(), _ranked()).cte("entries")
        kinds = _kinds(session)
        self._source = entries.join(
            kinds,
            (kinds.c.supercell_id == entries.c.supercell_id) & (kinds.c.composition_id == entries.c.composition_id),
        )
        self.columns: Mapping[str, ColumnElement[Any]] = {
            **{c.name: c for c in entries.c}, **{name: kinds.c[name] for name in _KINDS},
            "type": literal("structures", Text),
        }  # fmt: skip

    def count(self, condition: ColumnElement[bool]) -> int:
        """How many structures satisfy a condition."""
        return self._session.scalar(select(func.count()).select_from(self._source).where(condition)) or 0

    def page(self, condition: ColumnElement[bool], *, after: str | None, limit: int) -> list[dict[str, Any]]:
        """The next ones in the order of their ids."""
        key = self.columns["id"].collate("C")
        statement = select(*(value.label(name) for name, value in self.columns.items())).select_from(self._source)
        statement = statement.where(condition).order_by(key).limit(limit)
        if after is not None:
            statement = statement.where(key > after)
        return [dict(row) for row in self._session.execute(statement).mappings()]


def attributes_of(session: Session, row: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a structure, with sites and species."""
    supercell = load_supercell(session, row["supercell_id"]).supercell
    names = list(supercell.species)
    for site, code in zip(row["sites"], row["defect_types"], strict=True):
        names[site] = DefectType.from_code(code).added or VACANCY
    plain = ("elements", "nelements", "elements_ratios", "dimension_types", "nperiodic_dimensions", "nsites")
    return {
        "immutable_id": None,
        "last_modified": row["last_modified"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        **{name: row[name] for name in plain},
        "chemical_formula_descriptive": row["descriptive"],
        "chemical_formula_reduced": row["reduced"],
        "chemical_formula_hill": row["hill"],
        "chemical_formula_anonymous": row["anonymous"],
        "lattice_vectors": supercell.lattice.tolist(),
        "cartesian_site_positions": supercell.positions.tolist(),
        "species": [
            {"name": name, "chemical_symbols": [name], "concentration": [1.0]} for name in dict.fromkeys(names)
        ],
        "species_at_sites": names,
        "structure_features": [],
        **{name: row[str(of)] for name, of in OWN_COLUMNS},
    }


def _calculated() -> Any:
    """Configurations of defects with a standing result that has a formation energy or a gap."""
    result, configuration = tables.CalculationResult, tables.Configuration
    return (
        select(
            func.concat("calculated-", result.id).label("id"), cast(null(), Text).label("immutable_id"),
            configuration.supercell_id, configuration.composition_id, configuration.sites, configuration.defect_types,
            cast(result.taken_in_at, DateTime(timezone=True)).label("last_modified"),
            literal(True, Boolean).label("is_calculated"), tables.LevelOfTheory.name.label("level"),
            cast(null(), Text).label("model"), cast(null(), Text).label("ranking"),
            cast(null(), Double).label("probability"),
            *(cast(getattr(result, name), Double).label(name) for name in PROPERTY_COMMENTS),
            *(cast(null(), Double).label(f"{name}_std") for name in PROPERTY_COMMENTS),
        )
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .join(configuration, configuration.id == tables.Calculation.configuration_id)
        .join(tables.LevelOfTheory, tables.LevelOfTheory.id == tables.Calculation.level_id)
        .where(configuration.n_defects > 0, stands())
    )  # fmt: skip


def _ranked() -> Any:
    """Rows of rankings; of a configuration that is in several, that of the newest."""
    ranking, row, place = tables.Ranking, tables.RankingRow, tables.RankingCampaign
    value = tables.RankingValue
    of_row = (value.ranking_id == row.ranking_id, value.rank == row.rank)

    def said(name: str, part: Any) -> Any:
        return select(part).where(*of_row, value.property == name).correlate(row).scalar_subquery()

    return (
        select(
            func.concat("ranked-", row.ranking_id, "-", row.rank).label("id"), cast(null(), Text).label("immutable_id"),
            place.supercell_id, row.composition_id, row.sites, row.defect_types,
            cast(ranking.created_at, DateTime(timezone=True)).label("last_modified"),
            literal(False, Boolean).label("is_calculated"), tables.LevelOfTheory.name.label("level"),
            tables.TrainedModel.name.label("model"),
            func.coalesce(ranking.name, cast(ranking.id, Text)).label("ranking"),
            cast(row.probability, Double).label("probability"),
            *(cast(said(name, value.mean), Double).label(name) for name in PROPERTY_COMMENTS),
            *(cast(said(name, value.std), Double).label(f"{name}_std") for name in PROPERTY_COMMENTS),
        )
        .ext(distinct_on(place.supercell_id, row.sites, row.defect_types))
        .join(ranking, ranking.id == row.ranking_id)
        .join(place, (place.ranking_id == row.ranking_id) & (place.place == row.place))
        .join(tables.TrainedModel, tables.TrainedModel.id == place.model_id)
        .join(tables.LevelOfTheory, tables.LevelOfTheory.id == ranking.level_id)
        .where(row.is_calculated.is_(False))
        .order_by(place.supercell_id, row.sites, row.defect_types, row.ranking_id.desc(), row.rank)
    )  # fmt: skip


def _kinds(session: Session) -> Any:
    """A table of what belongs to each supercell with a composition that occurs."""
    configuration, row, place = tables.Configuration, tables.RankingRow, tables.RankingCampaign
    pairs = session.execute(
        select(configuration.supercell_id, configuration.composition_id).where(configuration.n_defects > 0).union(
            select(place.supercell_id, row.composition_id).join(
                row, (row.ranking_id == place.ranking_id) & (row.place == place.place)
            )
        )
    ).all()  # fmt: skip
    compositions = {
        found.id: tuple(zip(found.defect_types, found.counts, strict=True))
        for found in session.scalars(
            select(tables.Composition).where(tables.Composition.id.in_({pair.composition_id for pair in pairs}))
        )
    }
    supercells = {
        supercell_id: load_supercell(session, supercell_id).supercell
        for supercell_id in {pair.supercell_id for pair in pairs}
    }
    rows = []
    for supercell_id, composition_id in pairs:
        supercell = supercells[supercell_id]
        counts = tuple(sorted(Counter(supercell.species).items()))
        of = (supercell.host.name, supercell.label, counts, supercell.host.is_layer, compositions[composition_id])
        rows.append({"supercell_id": supercell_id, "composition_id": composition_id, **_kind(*of)})
    names = [column("supercell_id", Integer), column("composition_id", Integer)]
    names += [column(name, of) for name, of in _KINDS.items()]
    table = func.jsonb_to_recordset(cast(bindparam(None, json.dumps(rows), Text), JSONB))
    return table.table_valued(*names).render_derived(name="kinds", with_types=True)


@lru_cache(100_000)
def _kind(
    host: str, label: str, species: tuple[tuple[str, int], ...], is_layer: bool,  # a cache's key
    composition: tuple[tuple[int, int], ...],
) -> dict[str, Any]:  # fmt: skip
    """Formulas and numbers of a supercell with so many defects of each type."""
    atoms = Counter(dict(species))
    types = [(DefectType.from_code(code), n) for code, n in composition]
    for defect_type, n in types:
        atoms[defect_type.removed] -= n
        if defect_type.added is not None:
            atoms[defect_type.added] += n
    atoms = Counter({symbol: n for symbol, n in atoms.items() if n})
    elements, total = sorted(atoms), atoms.total()
    names = set(elements) | ({VACANCY} if any(t.added is None for t, _ in types) else set())
    words = "+".join(f"{n}*{t.name}" if n > 1 else t.name for t, n in types)
    return {
        "elements": elements, "nelements": len(elements), "elements_ratios": [atoms[e] / total for e in elements],
        "descriptive": f"{host} {label} {words.replace('+', ', ')}", "reduced": _reduced(atoms), "hill": _hill(atoms),
        "anonymous": _anonymous(atoms), "dimension_types": [1, 1, 0 if is_layer else 1], "n_dimensions": 3,
        "nperiodic_dimensions": 2 if is_layer else 3, "nsites": sum(n for _, n in species), "n_species": len(names),
        "species_names": sorted(names), "structure_features": [], "n_features": 0, "host": host, "supercell": label,
        "configuration": words, "types": [t.name for t, _ in types], "n_types": len(types),
        "n_defects": sum(n for _, n in types),
    }  # fmt: skip


def _reduced(atoms: Mapping[str, int]) -> str:
    divisor = gcd(*atoms.values())
    return "".join(_part(symbol, atoms[symbol] // divisor) for symbol in sorted(atoms))


def _hill(atoms: Mapping[str, int]) -> str:
    """Carbon and hydrogen first where there is carbon, the rest in alphabetical order."""
    first = [symbol for symbol in ("C", "H") if symbol in atoms] if "C" in atoms else []
    return "".join(_part(symbol, atoms[symbol]) for symbol in [*first, *(s for s in sorted(atoms) if s not in first)])


def _anonymous(atoms: Mapping[str, int]) -> str:
    divisor = gcd(*atoms.values())
    counts = sorted((n // divisor for n in atoms.values()), reverse=True)
    return "".join(_part(chr(ord("A") + i), n) for i, n in enumerate(counts))


def _part(symbol: str, n: int) -> str:
    return symbol if n == 1 else f"{symbol}{n}"
