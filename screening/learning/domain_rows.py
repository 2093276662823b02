"""What the network of a domain learns: which domains there are, and their rows as graphs and standardised targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Domain, Ensemble
from screening.learning.graph import Graphs, pair_table, ragged_graphs
from screening.learning.references import References, output_labels
from screening.learning.settings import TrainingSettings

SMALLEST_SPREAD = 0.02  # of the overall scale; a group of nearly equal labels must not rule the loss
SPARSE = 3  # defects; a network of its own for up to so many
FEWEST_SPARSE_ROWS, FEWEST_OTHER_ROWS = 1000, 30  # for which it is worth while, and needed
OTHERS_ROWS = 1200  # that a network learns though another one serves them; by fold, which is as good as chance


@dataclass(frozen=True, eq=False)
class DomainRows:
    """The training rows of one domain as its network takes them.

    Attributes:
        rows: the training rows.
        graphs: of them.
        targets: (n, n_outputs) standardised labels, NaN where absent.
        weights: (n,) float64, of `group_weights`.
        group: (n,) number of the group of each row among those of the host.
        spreads: (n_groups, n_outputs) standard deviation of the targets in each group.
        fold: (n,) of each row among the members.
    """

    rows: LabelledRows
    graphs: Graphs
    targets: NDArray[np.float64]
    weights: NDArray[np.float64]
    group: NDArray[np.int64]
    spreads: NDArray[np.float64]
    fold: NDArray[np.int64]


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
    served_else = max(d.most_defects for d in domains if d.host == domain.host)
    if not domain.most_defects and served_else:
        few = np.flatnonzero(is_learnt & (rows.n_defects <= served_else))
        is_learnt[few[np.argsort(rows.fold[few], kind="stable")[OTHERS_ROWS:]]] = False
    if not is_learnt.any():
        return None
    learnt = rows.chosen(np.flatnonzero(is_learnt))
    return replace(
        learnt,
        supercells=tuple(rows.supercells[s] for s in used),
        supercell_of_row=np.searchsorted(used, learnt.supercell_of_row),
    )


def prepare_rows(rows: LabelledRows, references: References, settings: TrainingSettings) -> DomainRows:
    """Training rows of one domain as graphs and standardised targets."""
    tables = [pair_table(supercell) for supercell in rows.supercells]
    graphs = ragged_graphs(tables, rows.supercell_of_row, rows.configurations)
    host = rows.supercells[0].host.name
    offsets = references.offsets([host] * len(rows.configurations), rows.configurations)
    targets = references.standardise(output_labels(rows, references.outputs), offsets)
    _, group = np.unique(rows.group_of_row, return_inverse=True)
    spreads = _group_spreads(targets, group)
    return DomainRows(rows, graphs, targets, group_weights(group), group, spreads, rows.fold % settings.n_members)


def _group_spreads(targets: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n_groups, n_outputs): standard deviation of the targets in each group."""
    spreads = np.ones((group.max() + 1, targets.shape[1]))
    for g, p in np.ndindex(spreads.shape):
        known = targets[group == g, p]
        known = known[np.isfinite(known)]
        spreads[g, p] = max(float(known.std()) if len(known) > 1 else 1.0, SMALLEST_SPREAD)
    return spreads


def group_weights(group_of_row: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,): chances by which groups are drawn as the roots of their sizes: small ones more often, not too often."""
    _, place, sizes = np.unique(group_of_row, return_inverse=True, return_counts=True)
    return np.asarray(sizes[place] ** -0.5)
