"""What the network of a domain learns: which domains there are, and their rows as graphs and standardised targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Domain, Ensemble
from screening.learning.graph import Graphs, pair_table, ragged_graphs
from screening.learning.references import ENERGY, ENERGY_PER_SITE, References, output_labels
from screening.learning.settings import TrainingSettings

SMALLEST_SPREAD = 0.02  # of the overall scale; a group of nearly equal labels must not rule the loss
NEVER_VARIES = 1e-3  # of the overall scale
SPARSE = 4  # defects, of a network of its own; few results have four, and it is better at them all the same
FEWEST_SPARSE_ROWS, FEWEST_OTHER_ROWS = 1000, 30  # for which it is worth while, and needed
OTHER_ZERO = 3.0  # standard deviations between the means of properties that do not mean the same


@dataclass(frozen=True, eq=False)
class DomainRows:
    """The training rows of one domain as its network takes them.

    Attributes:
        rows: the training rows.
        graphs: of them.
        targets: (n, n_outputs) standardised labels in the units of the domain, NaN where absent.
        units: (n_outputs,) standard deviation of the standardised labels of the domain: those of sparse defects vary
            by a tenth of those of all hosts, and outputs of order one are learnt better. 0 for what never varies here,
            as the magnetisation of hosts calculated without spin: it is not learnt, its targets are NaN.
        weights: (n,) float64, of `group_weights`.
        group: (n,) number of the group of each row among those of the domain.
        spreads: (n_groups, n_outputs) standard deviation of the targets in each group.
        fold: (n,) of each row among the members.
    """

    rows: LabelledRows
    graphs: Graphs
    targets: NDArray[np.float64]
    units: NDArray[np.float64]
    weights: NDArray[np.float64]
    group: NDArray[np.int64]
    spreads: NDArray[np.float64]
    fold: NDArray[np.int64]

    def in_units(self, standardised: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standardised values (..., n_outputs) as targets."""
        return _in_units(standardised, self.units)


def _in_units(standardised: NDArray[np.float64], units: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(units > 0, standardised, np.nan) / np.where(units > 0, units, 1.0)


def domains_of(rows: LabelledRows, hosts: Sequence[str], before: Ensemble | None) -> tuple[Domain, ...]:
    """The domains of all hosts; those of an ensemble to start from stay."""
    host_of_row = np.array([supercell.host.name for supercell in rows.supercells])[rows.supercell_of_row]
    domains: list[Domain] = list(before.domains) if before is not None else []
    for host in hosts:
        if any(domain.host == host for domain in domains):
            continue
        sizes = rows.n_defects[(host_of_row == host) & ~rows.is_validation]
        n_sparse = np.count_nonzero(sizes <= SPARSE)
        if n_sparse >= FEWEST_SPARSE_ROWS and len(sizes) - n_sparse >= FEWEST_OTHER_ROWS:
            domains.append(Domain(host, SPARSE))
        domains.append(Domain(host))
    return tuple(domains)


def rows_of_domain(rows: LabelledRows, domains: Sequence[Domain], domain: Domain) -> LabelledRows | None:
    """The training rows that a domain's network learns, if there are any; the supercells of others are left out."""
    used = [s for s, supercell in enumerate(rows.supercells) if supercell.host.name == domain.host]
    is_learnt = ~rows.is_validation & np.isin(rows.supercell_of_row, used)
    if domain.most_defects:
        is_learnt &= rows.n_defects <= domain.most_defects
    if not is_learnt.any():
        return None
    learnt = rows.chosen(np.flatnonzero(is_learnt))
    if served_else := defects_served_else(domains, domain):
        learnt = replace(learnt, labels=_comparable_labels(learnt, learnt.n_defects <= served_else))
    return replace(
        learnt,
        supercells=tuple(rows.supercells[s] for s in used),
        supercell_of_row=np.searchsorted(used, learnt.supercell_of_row),
    )


def defects_served_else(domains: Sequence[Domain], domain: Domain) -> int:
    """Configurations of up to so many defects, which a domain's network learns, are served by another one; 0 if not."""
    return 0 if domain.most_defects else max(d.most_defects for d in domains if d.host == domain.host)


def _comparable_labels(rows: LabelledRows, is_served_else: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, n_properties) labels; those of rows that another network serves are NaN where they have another zero.

    Orbital energies of sparse and dense sets of 2DMD are counted from zeros 1.3 eV apart.
    """
    labels = rows.labels.copy()
    for p, name in enumerate(rows.properties):
        here, there = (labels[which & np.isfinite(labels[:, p]), p] for which in (~is_served_else, is_served_else))
        if name in (ENERGY, ENERGY_PER_SITE) or not len(here) or not len(there):
            continue
        if abs(here.mean() - there.mean()) > OTHER_ZERO * max(here.std(), there.std()):
            labels[is_served_else, p] = np.nan
    return labels


def prepare_rows(
    rows: LabelledRows,
    references: References,
    settings: TrainingSettings,
    *,
    served_else: int = 0,
    is_known: NDArray[np.bool_] | None = None,
) -> DomainRows:
    """Training rows of one domain as graphs and standardised targets.

    Args:
        served_else: of `defects_served_else`.
        is_known: (n_outputs,) what the network to go on with has learnt: it stays learnt though it may not vary now.
    """
    tables = [pair_table(supercell) for supercell in rows.supercells]
    graphs = ragged_graphs(tables, rows.supercell_of_row, rows.configurations)
    host = rows.supercells[0].host.name
    offsets = references.offsets([host] * len(rows.configurations), rows.configurations)
    targets = references.standardise(output_labels(rows, references.outputs), offsets)
    units = np.array([_unit_of(column) for column in targets.T])
    if is_known is not None:
        units = np.where(is_known & (units == 0), SMALLEST_SPREAD, units)
    targets = _in_units(targets, units)
    _, group = np.unique(rows.group_of_row, return_inverse=True)
    spreads = _group_spreads(targets, group)
    weights = group_weights(group, is_served_else=rows.n_defects <= served_else)
    fold = rows.fold % settings.n_members
    return DomainRows(rows, graphs, targets, units, weights, group, spreads, fold)


def _group_spreads(targets: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n_groups, n_outputs): standard deviation of the targets in each group."""
    spreads = np.ones((group.max() + 1, targets.shape[1]))
    for g, p in np.ndindex(spreads.shape):
        spreads[g, p] = spread_of(targets[group == g, p])
    return spreads


def _unit_of(targets: NDArray[np.float64]) -> float:
    known = targets[np.isfinite(targets)]
    return 0.0 if len(known) > 1 and known.std() < NEVER_VARIES else spread_of(known)


def spread_of(targets: NDArray[np.float64]) -> float:
    """Standard deviation of the targets that are known, not too small; 1 for one alone."""
    known = targets[np.isfinite(targets)]
    return max(float(known.std()) if len(known) > 1 else 1.0, SMALLEST_SPREAD)


def group_weights(group_of_row: NDArray[np.int64], *, is_served_else: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,): chances by which groups are drawn as the roots of their sizes: small ones more often, not too often.

    Rows that another network serves are drawn as often as all the others together.
    """
    _, place, sizes = np.unique(group_of_row, return_inverse=True, return_counts=True)
    weights = sizes[place] ** -0.5
    if is_served_else.any() and not is_served_else.all():
        for part in (is_served_else, ~is_served_else):
            weights[part] /= weights[part].sum()
    return np.asarray(weights)
