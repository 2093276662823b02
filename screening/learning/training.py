"""Training an ensemble: a network per domain, every member in the same batches, each from weights and rows of its own.

Hosts do not share weights: trained together they took six times as long, and were worse on every subset of 2DMD. A
host with many results of up to four defects has a network for these, which learns nothing else: with 300 rows of up to
24 defects beside them the errors of 3,600 rows of three were 3.1 meV per site and 9.0 meV of the gap, without 1.8 and
4.1. The network for more defects begins with the weights of that one, and goes on learning all rows of the host, so
that it knows what pairs do. Two phases make a network:

1. The results alone, in units of their spread in the domain. Rows are drawn so that groups weigh as the roots of their
   sizes; a step of AdamW on a Huber-like loss of the errors in units of their group's spread moves the weights, and
   averaged weights follow. The learning rate rises for a moment and falls along a cosine.
2. Results and drawn configurations (`screening.learning.teaching`), labelled by a mixture of a kernel regression and of
   the member itself, as it was at the end of the first phase. Their shares, by group and property, are those with the
   least errors on left-out rows. Many configurations that agree with the best that is known keep a network from
   learning few results by heart. Where the regression has nothing to teach the phase is left out.

Members are cross-fitted: member m never learns from the rows of fold m, directly or through its teacher. After every
epoch the averaged weights of each member are measured on the rows that it leaves out, and those with the smallest
error are kept; a phase ends early when no member has improved for a while. What members say of rows they left out is
also what the standard deviations are calibrated with, so that a training needs no rows beside those it learns from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from screening.defects.defect_types import Configuration
from screening.learning.artifacts import pack, references_from, references_to_card, references_to_tensors, unpack
from screening.learning.calibration import Calibration, calibrate, errors_of_mean, spreads_of_left_out
from screening.learning.dataset import LabelledRows
from screening.learning.descent import Descent, Rows, choose_device, evaluate, steps_per_epoch
from screening.learning.domain_rows import (
    DomainRows,
    defects_served_else,
    domains_of,
    group_weights,
    prepare_rows,
    rows_of_domain,
)
from screening.learning.ensemble import Domain, Ensemble, domain_of
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.graph import Graphs, join_graphs, pair_table, ragged_graphs, share_kinds
from screening.learning.novelty import learn_novelty
from screening.learning.references import References, extend_references, fit_references, output_labels
from screening.learning.settings import TrainingSettings
from screening.learning.teaching import (
    DRAWN_PER_RESULT,
    Drawn,
    draw_rows,
    label_drawn,
    shares_of_teacher,
)

RETRAINING = 0.3  # share of the learning rate when a training starts from a finished model
DRAWN_PASSES = 0.1  # epochs of the second phase by those of the first: there are many more rows
AFTER_FEWER = 0.4  # epochs of the first phase where it begins with the network for fewer defects
N_PHASES = 2
LEAST_SHARE = 0.1  # of a teacher in any property, for which the second phase is worth its time


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epoch: of all domains and phases together, as max_epochs; phases that end early are counted whole.
        train_loss: mean over the last epoch, members and properties.
        validation_mae: by output (eV, or Bohr magneton), of single members on the rows that they leave out, in the
            domain that is being learnt.
        host: of the domain.
    """

    epoch: int
    max_epochs: int
    n_members: int
    train_loss: float
    validation_mae: dict[str, float]
    elapsed_s: float
    host: str


OnProgress = Callable[[Progress, Callable[[], bytes]], None]


def train_ensemble(
    rows: LabelledRows,
    settings: TrainingSettings,
    *,
    seed: int,
    on_progress: OnProgress,
    resume_from: bytes | None = None,
    start_from: Ensemble | None = None,
    changed: Collection[tuple[str, int]] | None = None,
) -> Ensemble:
    """Train an ensemble on labelled rows; those for validation are not looked at.

    Args:
        on_progress: called after every epoch with the progress and a function that makes a checkpoint;
            an exception from it ends the training.
        resume_from: a checkpoint of a training with the same rows, settings and seed.
        start_from: a finished ensemble whose weights and references are the start.
        changed: hosts and numbers of defects whose results are not those that the ensemble to start from has learnt:
            networks that serve none of them stay as they are.
    """
    if start_from is not None:
        settings = replace(
            settings,
            n_members=start_from.n_members,
            width=start_from.networks[0].architecture.width,
            n_blocks=start_from.networks[0].architecture.n_blocks,
            learning_rate=settings.learning_rate * RETRAINING,
        )
    references = fit_references(rows) if start_from is None else extend_references(start_from.references, rows)
    training = _Training(rows, settings, seed, start_from, changed, references)
    if resume_from is not None:
        training.restore(resume_from)
    training.run(on_progress)
    novelty = learn_novelty(rows, training.references, start_from.novelty if start_from else None)
    calibration = training.calibration(start_from)
    networks = tuple(network.cpu().eval() for network in training.networks)
    return Ensemble(training.domains, networks, training.references, calibration, novelty, rows.properties)


class _Training:
    """The networks of all domains, one after the other, each in its phases; what a checkpoint holds."""

    def __init__(
        self, rows: LabelledRows, settings: TrainingSettings, seed: int, start_from: Ensemble | None,
        changed: Collection[tuple[str, int]] | None, references: References,
    ) -> None:  # fmt: skip
        self.references = references
        self.networks: list[SparseDefectNetwork] = []
        self._rows = rows
        self._settings = settings
        self._seed = seed
        self._start_from = start_from
        self._changed = changed
        self.domains = domains_of(rows, references.hosts, start_from)
        self._device = choose_device(settings.device)
        self._elapsed_s = 0.0
        self._phase = 0
        self._resumed: tuple[dict[str, Tensor], dict[str, int]] | None = None
        self._drawn_labels: Tensor | None = None
        self._taught_groups: list[int] = []
        self._started = 0.0
        self._on_progress: OnProgress = lambda progress, checkpoint: None

    def run(self, on_progress: OnProgress) -> None:
        """Train what is not trained yet."""
        self._started = time.monotonic() - self._elapsed_s
        self._on_progress = on_progress
        for domain in self.domains[len(self.networks) :]:
            known, learnt = self._network_before(domain), rows_of_domain(self._rows, self.domains, domain)
            if known is not None and (learnt is None or not self._is_trained(domain)):
                self.networks.append(known)
            else:
                assert learnt is not None, f"no training row of {domain}"
                served_else = defects_served_else(self.domains, domain)
                is_known = None if known is None else ~known.silent_outputs().cpu().numpy()
                given = prepare_rows(
                    learnt, self.references, self._settings, served_else=served_else, is_known=is_known
                )
                self.networks.append(self._train_domain(domain, given))
            self._phase, self._drawn_labels = 0, None

    def calibration(self, before: Ensemble | None) -> Calibration:
        """From what members say of the rows they leave out; domains that serve no row keep what they had before."""
        errors, spreads, hosts, n_defects = [], [], [], []
        measured: set[int] = set()
        for number, (domain, network) in enumerate(zip(self.domains, self.networks, strict=True)):
            if (rows := rows_of_domain(self._rows, self.domains, domain)) is None:
                continue
            served = [domain_of(self.domains, domain.host, n) == number for n in rows.n_defects.tolist()]
            if not any(served):
                continue
            measured.add(number)
            given = prepare_rows(rows.chosen(np.flatnonzero(served)), self.references, self._settings)
            outputs = evaluate(network, given.graphs.to(self._device)).double().cpu().numpy()
            left_out = outputs[given.fold, np.arange(len(given.fold))]  # (n, n_outputs)
            labels = output_labels(given.rows, self.references.outputs)
            targets = self._standardise(labels, domain.host, given.rows.configurations)
            errors.append((left_out - targets) * self.references.scales)
            spread = spreads_of_left_out(outputs, given.fold, given.rows.n_defects)
            spreads.append(spread * self.references.scales)
            hosts.append(np.full(len(left_out), self.references.hosts.index(domain.host)))
            n_defects.append(given.rows.n_defects)
        host_of_row, sizes, of_members = np.concatenate(hosts), np.concatenate(n_defects), np.concatenate(spreads)
        of_mean = errors_of_mean(
            np.concatenate(errors), of_members, host_of_row, sizes, n_members=self._settings.n_members
        )
        found = calibrate(of_mean, of_members, host_of_row, sizes, scales=self.references.scales)
        if before is None:
            return found
        hosts_of_references = self.references.hosts
        return found.completed(
            before.calibration, lambda host, k: domain_of(self.domains, hosts_of_references[host], k) in measured
        )

    def checkpoint(self, descent: Descent) -> bytes:
        """The state as safetensors bytes."""
        tensors, counters = descent.to_tensors()
        for h, network in enumerate(self.networks):
            tensors |= {f"finished.{h}.{name}": tensor for name, tensor in network.state_dict().items()}
        if self._drawn_labels is not None:
            tensors["drawn_labels"] = self._drawn_labels
        tensors |= references_to_tensors(self.references)
        card = {
            "counters": counters,
            "phase": self._phase,
            "n_finished": len(self.networks),
            "elapsed_s": self._elapsed_s,
            "taught_groups": self._taught_groups,
            "references": references_to_card(self.references),
        }
        return pack(tensors, card)

    def restore(self, checkpoint: bytes) -> None:
        """Go on from where a checkpoint was made."""
        tensors, card = unpack(checkpoint)
        self.references = references_from(card["references"], tensors)
        for h in range(card["n_finished"]):
            prefix = f"finished.{h}."
            network = self._new_network(h)
            network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            self.networks.append(network)
        self._phase, self._elapsed_s = card["phase"], card["elapsed_s"]
        self._drawn_labels, self._taught_groups = tensors.get("drawn_labels"), card["taught_groups"]
        self._resumed = tensors, card["counters"]

    def _train_domain(self, domain: Domain, given: DomainRows) -> SparseDefectNetwork:
        """Both phases of one domain."""
        number = self.domains.index(domain)
        generator = torch.Generator().manual_seed(self._seed + number)
        learnt, left_out = (self._on_device(given, left_out=which) for which in (False, True))
        units = torch.from_numpy(given.units).float().to(self._device)
        network = self._network_before(domain) or self._network_of_fewer(domain)
        if network is None:
            network = self._new_network(number)  # its outputs are of order one as they are
        else:
            network.scale_outputs(torch.where(units > 0, 1.0 / units, 1.0))
        if self._phase == 0:
            if self._network_before(domain) is None:
                network.shift_outputs(_mean_residuals(evaluate(network, left_out.graphs), learnt.targets))
            descent = Descent(network, self._settings, generator)
            if self._start_from is not None:  # what it starts from is the first to be kept
                descent.keep_best(evaluate(descent.averaged, left_out.graphs), left_out)
            self._descend(descent, domain, given, learnt, left_out)
            network, self._phase = descent.best, 1
        drawn = self._draw(given)
        if drawn and self._drawn_labels is None:
            self._label(given, drawn, network)
        drawn = [part for part in drawn if part.group in self._taught_groups]
        if not drawn:
            network.scale_outputs(units)
            return network
        descent = Descent(network.requires_grad_(True), self._settings, generator)
        descent.keep_best(evaluate(descent.averaged, left_out.graphs), left_out)
        mixed = self._with_drawn(domain, given, drawn)
        self._descend(descent, domain, given, mixed, left_out)
        descent.best.scale_outputs(units)
        return descent.best

    def _descend(self, descent: Descent, domain: Domain, given: DomainRows, learnt: Rows, left_out: Rows) -> None:
        """One phase: to its last epoch, the end of its share of the time, or when nothing improves."""
        if self._resumed is not None:
            descent.restore(*self._resumed)
            self._resumed = None
        epochs = self._epochs(domain, self._phase)
        n_steps = epochs * steps_per_epoch(len(learnt.weights), self._settings)
        patience = self._settings.patience or max(10, epochs // 3)
        began_s, limit_s = self._now(), self._time_for_phase(domain)
        while descent.epoch < epochs and descent.stale_epochs < patience and self._now() - began_s <= limit_s:
            loss = descent.run_epoch(learnt, n_steps, (self._now() - began_s) / limit_s)
            outputs = evaluate(descent.averaged, left_out.graphs)
            descent.keep_best(outputs, left_out)
            self._elapsed_s = self._now()
            errors = (outputs - left_out.targets).abs().nanmean(dim=(0, 1)).cpu().numpy()
            errors = errors * given.units * self.references.scales
            before = self._epochs_of(self.domains[: len(self.networks)]) + self._phase * self._epochs(domain, 0)
            progress = Progress(
                before + descent.epoch,
                self._epochs_of(self.domains),
                self._settings.n_members,
                loss,
                {n: float(e) for n, e in zip(self.references.outputs, errors, strict=True) if np.isfinite(e)},
                self._elapsed_s,
                domain.host,
            )
            self._on_progress(progress, lambda: self.checkpoint(descent))
        descent.check()

    def _now(self) -> float:
        """Seconds of training, those before a checkpoint included."""
        return time.monotonic() - self._started

    def _time_for_phase(self, domain: Domain) -> float:
        """Seconds of the time that is left for this phase, by its share of the steps to be done."""
        if not self._settings.max_minutes:
            return np.inf
        steps = [
            self._steps(other, phase)
            for other in self.domains[len(self.networks) :]
            for phase in range(N_PHASES)
            if other != domain or phase >= self._phase
        ]
        left_s = max(60.0 * self._settings.max_minutes - self._now(), 1e-3)
        return left_s * self._steps(domain, self._phase) / sum(steps)

    def _steps(self, domain: Domain, phase: int) -> int:
        """About how many steps a phase of a domain has; 0 where it is not trained."""
        if (rows := rows_of_domain(self._rows, self.domains, domain)) is None or not self._is_trained(domain):
            return 0
        n_rows = len(rows.configurations)
        n_drawn = min(self._settings.drawn_rows, DRAWN_PER_RESULT * n_rows) if phase else 0
        return self._epochs(domain, phase) * steps_per_epoch(n_rows + n_drawn, self._settings)

    def _epochs(self, domain: Domain, phase: int) -> int:
        """Epochs of a phase of a domain, at most."""
        share = DRAWN_PASSES if phase else 1.0
        is_new = self._start_from is None or domain not in self._start_from.domains
        if not phase and is_new and defects_served_else(self.domains, domain):
            share = AFTER_FEWER
        return max(1, round(share * self._settings.epochs))

    def _epochs_of(self, domains: Sequence[Domain]) -> int:
        return sum(self._epochs(domain, phase) for domain in domains for phase in range(N_PHASES))

    def _is_trained(self, domain: Domain) -> bool:
        if self._network_before(domain) is None or self._changed is None:
            return True
        number = self.domains.index(domain)
        return any(host == domain.host and domain_of(self.domains, host, n) == number for host, n in self._changed)

    def _new_network(self, number: int) -> SparseDefectNetwork:
        """A network with the initial weights of a domain."""
        architecture = Architecture(
            n_members=self._settings.n_members,
            n_outputs=len(self.references.outputs),
            width=self._settings.width,
            n_blocks=self._settings.n_blocks,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + number)
            return SparseDefectNetwork(architecture).to(self._device)

    def _network_before(self, domain: Domain) -> SparseDefectNetwork | None:
        """A copy of the network that a domain has in the ensemble to start from."""
        before = self._start_from
        if before is None or domain not in before.domains:
            return None
        return deepcopy(before.networks[before.domains.index(domain)]).requires_grad_(True).to(self._device)

    def _network_of_fewer(self, domain: Domain) -> SparseDefectNetwork | None:
        """A copy of the finished network for fewer defects in the same host: it knows what pairs do."""
        for other, network in zip(self.domains, self.networks, strict=False):
            if other.host == domain.host and other.most_defects:
                return deepcopy(network).requires_grad_(True)
        return None

    def _draw(self, given: DomainRows) -> list[Drawn]:
        n_drawn = self._settings.drawn_rows
        return draw_rows(given.rows, n_drawn=n_drawn, seed=self._seed) if n_drawn else []

    def _label(self, given: DomainRows, drawn: Sequence[Drawn], network: SparseDefectNetwork) -> None:
        """Choose what is taught, and its targets (n_members, n, n_outputs): teachers mixed with what is known."""
        taught, of_teacher = label_drawn(
            given.rows, self.references.outputs, drawn, n_members=self._settings.n_members, others=self._rows,
            seed=self._seed,
        )  # fmt: skip
        host = given.rows.supercells[0].host.name
        of_teacher = given.in_units(self._standardise(of_teacher, host, given.rows.configurations))
        known = evaluate(network, given.graphs.to(self._device)).cpu().double().numpy()
        of_network = known[given.fold, np.arange(len(given.fold))]
        targets: list[Tensor] = []
        self._taught_groups = []
        for part, of_part in zip(drawn, taught, strict=True):
            like = given.rows.group_of_row == part.group
            shares = shares_of_teacher(given.targets[like], of_network[like], of_teacher[like])
            if shares.max() < LEAST_SHARE:
                continue
            outputs = evaluate(network, self._graphs_of([part]).to(self._device)).cpu().double().numpy()
            by_teacher = given.in_units(self._standardise(of_part, host, part.configurations))
            mixed = np.where(shares > 0, outputs + shares * (by_teacher - outputs), outputs)
            targets.append(torch.from_numpy(np.where(given.units > 0, mixed, np.nan)).float())
            self._taught_groups.append(part.group)
        self._drawn_labels = torch.cat(targets, dim=1) if targets else None

    def _standardise(
        self, labels: NDArray[np.float64], host: str, configurations: Sequence[Configuration]
    ) -> NDArray[np.float64]:
        """What a network shall give for labels (..., n, n_outputs)."""
        return self.references.standardise(
            labels, self.references.offsets([host] * len(configurations), configurations)
        )

    def _graphs_of(self, drawn: Sequence[Drawn]) -> Graphs:
        supercells = [part.supercell for part in drawn]
        owners = np.repeat(np.arange(len(drawn)), [len(part.configurations) for part in drawn])
        configurations = [configuration for part in drawn for configuration in part.configurations]
        return ragged_graphs([pair_table(s) for s in supercells], owners, configurations)

    def _with_drawn(self, domain: Domain, given: DomainRows, drawn: Sequence[Drawn]) -> Rows:
        """Training rows and drawn ones."""
        assert self._drawn_labels is not None
        real = self._on_device(given, left_out=False)
        numbers = {int(g): int(n) for g, n in zip(given.rows.group_of_row, given.group, strict=True)}
        sizes = [len(part.configurations) for part in drawn]
        group = np.concatenate([given.group, np.repeat([numbers[part.group] for part in drawn], sizes)])
        graphs = share_kinds(join_graphs([given.graphs, self._graphs_of(drawn)]))
        served_else = defects_served_else(self.domains, domain)
        weights = group_weights(group, is_served_else=graphs.n_defects.numpy() <= served_else)
        return Rows(
            graphs.to(self._device),
            torch.cat([real.targets, self._drawn_labels.to(self._device)], dim=1),
            torch.from_numpy(weights).float().to(self._device),
            torch.from_numpy(group).to(self._device),
            real.spreads,
        )

    def _on_device(self, given: DomainRows, *, left_out: bool) -> Rows:
        """The training rows, those that each member leaves out or those that it learns from."""
        members = np.arange(self._settings.n_members)[:, None]
        for_member = (given.fold == members) == left_out  # (n_members, n)
        chosen = np.where(for_member[:, :, None], given.targets, np.nan)
        targets, weights, spreads = (
            torch.from_numpy(x).float().to(self._device) for x in (chosen, given.weights, given.spreads)
        )
        group = torch.from_numpy(given.group).to(self._device)
        return Rows(given.graphs.to(self._device), targets, weights, group, spreads)


def _mean_residuals(outputs: Tensor, targets: Tensor) -> Tensor:
    """(m, o): what outputs (m, n, o) lack in the mean of the known targets; 0 where none is known.

    A network begins with it: levels of dense configurations lie up to ten units from those of sparse ones.
    """
    return torch.nan_to_num((targets - outputs).nanmean(dim=1))
