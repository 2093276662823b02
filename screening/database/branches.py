"""What a design query needs to know of the campaign that answers it: types, cells and area, and how errors spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database.design_query import DesignQuery
from screening.database.query_terms import Branch
from screening.database.tables import (
    Campaign,
    CampaignCorrelation,
    Candidate,
    DefectType,
    Host,
    IntervalMultiple,
    SearchSpace,
    Supercell,
)
from screening.database.window_probability import Spreads, loadings_of, slope_of
from screening.errors import InputError

_CM = 1e8  # angstrom


def load_branch(session: Session, campaign: Campaign, query: DesignQuery, *, place: int = 0) -> Branch:
    """The branch of a query that a campaign answers, without chemical potentials.

    Raises:
        InputError: the campaign does not keep distances between defects, or its host has no density in that unit.
    """
    space = session.get_one(SearchSpace, campaign.search_space_id)
    supercell = session.get_one(Supercell, space.supercell_id)
    host = session.get_one(Host, supercell.host_id)
    if query.min_separation is not None or query.max_separation is not None:
        _check_separations(session, campaign)
    unit = None if query.density is None else query.density.unit
    if unit in ("cm-2", "cm-3") and host.is_layer != (unit == "cm-2"):
        expected = "cell or cm-2" if host.is_layer else "cell or cm-3"
        raise InputError(
            f"density is per {unit}, and {host.name} is a {'layer' if host.is_layer else 'crystal'}; use {expected}"
        )
    return Branch(
        campaign.id,
        place,
        cells=abs(round(float(np.linalg.det(np.reshape(supercell.matrix, (3, 3)))))),
        area=_area(host, supercell),
        codes={name: code for name, code in _types_of(session, campaign).items() if name in _named(query)},
        spreads=spreads_of(session, campaign, host.name, [window.property for window in query.windows]),
    )


def spreads_of(session: Session, campaign: Campaign, host: str, properties: Sequence[str]) -> Spreads:
    """How the errors of predictions spread, and go together, by the number of defects."""
    multiples: dict[str, dict[int, float]] = {}
    rows = session.execute(
        select(IntervalMultiple.property, IntervalMultiple.n_defects, IntervalMultiple.multiple).where(
            IntervalMultiple.model_id == campaign.model_id,
            IntervalMultiple.host == host,
            IntervalMultiple.property.in_(properties),
        )
    )
    for name, n_defects, multiple in rows:
        multiples.setdefault(name, {})[n_defects] = slope_of(multiple)
    slopes = {name: _by_size(of_size) for name, of_size in sorted(multiples.items())}
    return Spreads(slopes, _loadings(session, campaign.id, properties))


def _loadings(session: Session, campaign_id: int, properties: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Loadings of windows' properties on their common factor; empty where they are independent or nobody looked."""
    if len(properties) < 2:
        return {}
    place = {name: i for i, name in enumerate(properties)}
    matrices: dict[int, np.ndarray[tuple[int, int], np.dtype[np.float64]]] = {}
    table = CampaignCorrelation
    rows = session.execute(
        select(table.n_defects, table.property, table.other, table.correlation).where(
            table.campaign_id == campaign_id, table.property.in_(properties), table.other.in_(properties)
        )
    )
    for n_defects, name, other, correlation in rows:
        matrix = matrices.setdefault(n_defects, np.eye(len(properties)))
        matrix[place[name], place[other]] = matrix[place[other], place[name]] = correlation
    loadings = {n_defects: loadings_of(matrix) for n_defects, matrix in matrices.items()}
    if not any(found.any() for found in loadings.values()):
        return {}
    return {
        name: _by_size({n_defects: float(found[i]) for n_defects, found in loadings.items()})
        for name, i in place.items()
    }


def _by_size(numbers: Mapping[int, float]) -> tuple[float, ...]:
    """Numbers of 1, 2, ... defects; one that is not there is that of the next smaller size, or of the smallest."""
    last = numbers[min(numbers)]
    found = []
    for n_defects in range(1, max(numbers) + 1):
        last = numbers.get(n_defects, last)
        found.append(last)
    return tuple(found)


def _area(host: Host, supercell: Supercell) -> float:
    """Of the supercell in cm^2 if it is a layer, otherwise its volume in cm^3."""
    lattice = np.reshape(supercell.matrix, (3, 3)) @ np.reshape(host.lattice, (3, 3))
    if host.is_layer:
        return float(np.linalg.norm(np.cross(lattice[0], lattice[1]))) / _CM**2
    return abs(float(np.linalg.det(lattice))) / _CM**3


def check_types(session: Session, query: DesignQuery, campaigns: Sequence[Campaign]) -> None:
    """Make sure that every defect type that a query names occurs in one of the campaigns that answer it.

    Raises:
        InputError: one does not.
    """
    known: set[str] = set()
    for campaign in campaigns:
        known |= _types_of(session, campaign).keys()
    missing = sorted(set(_named(query)) - known)
    if missing:
        raise InputError(
            f"the design query names {', '.join(missing)}; the candidates of "
            f"{', '.join(campaign.name for campaign in campaigns)} are made of {', '.join(sorted(known))}"
        )


def _named(query: DesignQuery) -> list[str]:
    return [*query.types, *query.required, *query.forbidden, *(count.type for count in query.counts)]


def _types_of(session: Session, campaign: Campaign) -> dict[str, int]:
    """Ids of the defect types of a campaign, by name."""
    types = session.get_one(SearchSpace, campaign.search_space_id).defect_types
    return dict(session.execute(select(DefectType.name, DefectType.id).where(DefectType.id.in_(types))).all())


def _check_separations(session: Session, campaign: Campaign) -> None:
    """Make sure that distances between defects are kept."""
    several = func.cardinality(Candidate.sites) > 1
    row = session.execute(
        select(Candidate.closest).where(Candidate.campaign_id == campaign.id, several).limit(1)
    ).first()
    if row is not None and row.closest is None:
        raise InputError(
            f"campaign {campaign.name} was scanned by an older version, which did not keep the distances between "
            "defects; delete it and scan again to ask for separations"
        )
