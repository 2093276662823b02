"""Training an ensemble: every member sees the same batches, each from weights of its own.

The loop in order: draw rows (groups weigh equally), one step of AdamW on a Huber-like loss of the errors in
units of their group's spread, move the averaged weights, and once per epoch measure the averaged weights on the
validation rows and keep for each member those with the smallest error. The learning rate rises for a moment and
falls along a cosine; training stops early when no member has improved for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from screening.errors import InputError
from screening.learning.artifacts import pack, references_from, references_to_card, references_to_tensors, unpack
from screening.learning.calibration import calibrate
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.gnn import Architecture, MemberLinear, SparseDefectNetwork
from screening.learning.graph import Graphs, pair_table, ragged_graphs, select_graphs
from screening.learning.novelty import Novelty, learn_novelty
from screening.learning.references import References, extend_references, fit_references, output_labels
from screening.learning.settings import TrainingSettings

WARM_UP = 0.02  # share of the steps
LAST_RATE = 0.01  # share of the learning rate at the end of the cosine
AVERAGE_DECAY = 0.999  # of the averaged weights
HUBER = 0.1  # errors below this share of a group's spread count quadratically
SMALLEST_GROUP_SCALE = 0.02  # of the overall scale; a group of nearly equal labels must not rule the loss
RETRAINING = 0.3  # share of the learning rate when a training starts from a finished model
_EVALUATION_ROWS = 2048


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        train_loss: mean over the last epoch, members and properties.
        validation_mae: by output (eV, or Bohr magneton), of the mean of the members' averaged weights.
    """

    epoch: int
    max_epochs: int
    n_members: int
    train_loss: float
    validation_mae: dict[str, float]
    elapsed_s: float


@dataclass(eq=False)
class _State:
    """Everything that changes while training; what a checkpoint holds."""

    network: SparseDefectNetwork
    averaged: SparseDefectNetwork
    best: SparseDefectNetwork
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    best_error: Tensor  # (n_members,)
    epoch: int = 0
    step: int = 0
    stale_epochs: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True, eq=False)
class _Data:
    """Graphs and labels of the rows of one role, on the device.

    Attributes:
        targets: (n, n_outputs) standardised labels, NaN where absent.
        scales: (n, n_outputs) spread of the targets in the group of each row.
        weights: (n,) chance of being drawn.
    """

    graphs: Graphs
    targets: Tensor
    scales: Tensor
    weights: Tensor


OnProgress = Callable[[Progress, Callable[[], bytes]], None]


def train_ensemble(
    rows: LabelledRows,
    settings: TrainingSettings,
    *,
    seed: int,
    on_progress: OnProgress,
    resume_from: bytes | None = None,
    start_from: Ensemble | None = None,
) -> Ensemble:
    """Train an ensemble on labelled rows.

    Args:
        on_progress: called after every epoch with the progress and a function that makes a checkpoint;
            an exception from it ends the training.
        resume_from: a checkpoint of a training with the same rows, settings and seed.
        start_from: a finished ensemble whose weights and references are the start.
    """
    if start_from is not None:
        settings = replace(
            settings,
            n_members=start_from.n_members,
            width=start_from.network.architecture.width,
            n_blocks=start_from.network.architecture.n_blocks,
            learning_rate=settings.learning_rate * RETRAINING,
        )
    device = choose_device(settings.device)
    references = fit_references(rows) if start_from is None else extend_references(start_from.references, rows)
    state = _new_state(settings, references, seed, device, start_from)
    if resume_from is not None:
        references = _restore(state, resume_from)
    train, validation = _prepare(rows, references, device)
    if start_from is not None and resume_from is None:  # what it starts from is the first to be kept
        _keep_best(state, evaluate(state.averaged, validation.graphs), validation)
    total_steps = settings.epochs * _steps_per_epoch(len(train.weights), settings)
    patience = settings.patience or max(10, settings.epochs // 3)
    started = time.monotonic() - state.elapsed_s
    while state.epoch < settings.epochs and state.stale_epochs < patience:
        if settings.max_minutes and state.elapsed_s > 60 * settings.max_minutes:
            break
        loss = _train_epoch(state, train, settings, total_steps, started)
        state.epoch += 1
        outputs = evaluate(state.averaged, validation.graphs)
        _keep_best(state, outputs, validation)
        state.elapsed_s = time.monotonic() - started
        errors = (outputs.mean(dim=0) - validation.targets).abs().nanmean(dim=0).cpu().numpy() * references.scales
        progress = Progress(
            state.epoch,
            settings.epochs,
            settings.n_members,
            loss,
            {n: float(e) for n, e in zip(references.outputs, errors, strict=True) if np.isfinite(e)},
            state.elapsed_s,
        )
        on_progress(progress, lambda: _checkpoint(state, references))
    novelty = learn_novelty(rows, references, start_from.novelty if start_from else None)
    return _finish(state, validation, references, novelty, rows.properties)


def choose_device(name: str) -> torch.device:
    """The device of a setting: `auto` takes a GPU where there is one.

    Raises:
        InputError: `cuda` is wanted and torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("the device shall be cuda, but torch sees no GPU here; choose auto or cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@torch.no_grad()
def evaluate(network: SparseDefectNetwork, graphs: Graphs) -> Tensor:
    """(n_members, n_graphs, n_outputs) outputs of a network, a part of the graphs at a time."""
    parts = torch.split(torch.arange(graphs.n_graphs, device=graphs.host.device), _EVALUATION_ROWS)
    return torch.cat([network(select_graphs(graphs, part)) for part in parts], dim=1)


def _train_epoch(state: _State, data: _Data, settings: TrainingSettings, total_steps: int, started: float) -> float:
    """One pass; the mean loss."""
    losses = []
    for chosen in _draw(data.weights, settings, state.generator):
        done = state.step / total_steps
        if settings.max_minutes:
            done = max(done, (time.monotonic() - started) / (60 * settings.max_minutes))
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(min(done, 1.0))
        outputs = state.network(select_graphs(data.graphs, chosen))  # (n_members, n, n_outputs)
        targets = data.targets[chosen]  # (n, n_outputs)
        known = torch.isfinite(targets)
        errors = (outputs - targets.nan_to_num()) / data.scales[chosen]
        huber = ((errors**2 + HUBER**2).sqrt() - HUBER) * known
        loss = huber.sum() / (known.sum() * len(outputs)).clamp(min=1)
        state.optimizer.zero_grad()
        torch.autograd.backward(loss * settings.n_members)  # each member's gradient as if it were alone
        state.optimizer.step()
        state.step += 1
        _move_average(state)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def _move_average(state: _State) -> None:
    decay = min(AVERAGE_DECAY, (1 + state.step) / (10 + state.step))
    for averaged, current in zip(state.averaged.parameters(), state.network.parameters(), strict=True):
        averaged.lerp_(current, 1.0 - decay)


@torch.no_grad()
def _keep_best(state: _State, outputs: Tensor, validation: _Data) -> None:
    """Keep the averaged weights of the members that have become better on the validation rows."""
    known = torch.isfinite(validation.targets)
    errors = ((outputs - validation.targets.nan_to_num()) / validation.scales).abs()  # (n_members, n, n_outputs)
    weights = validation.weights[:, None] * known  # (n, n_outputs)
    error = (errors * weights).sum(dim=(1, 2)) / weights.sum()
    better = error < state.best_error
    state.stale_epochs = 0 if bool(better.any()) else state.stale_epochs + 1
    state.best_error = torch.where(better, error, state.best_error)
    for kept, averaged in zip(state.best.parameters(), state.averaged.parameters(), strict=True):
        kept[better] = averaged[better]


def _finish(
    state: _State, validation: _Data, references: References, novelty: Novelty, properties: tuple[str, ...]
) -> Ensemble:
    """The best members, calibrated on the validation rows.

    Raises:
        InputError: a member never had a finite error.
    """
    if not bool(torch.isfinite(state.best_error).all()):
        raise InputError("the training diverged: its errors are no numbers; check the labels, or lower learning_rate")
    outputs = evaluate(state.best, validation.graphs).double().cpu()
    errors = (outputs.mean(dim=0) - validation.targets.double().cpu()).numpy() * references.scales
    spread = outputs.std(dim=0, correction=1) if len(outputs) > 1 else torch.zeros_like(outputs[0])
    graphs = validation.graphs
    calibration = calibrate(
        errors,
        spread.numpy() * references.scales,
        graphs.host.cpu().numpy(),
        graphs.n_defects.long().cpu().numpy(),
        scales=references.scales,
    )
    return Ensemble(state.best.cpu().eval(), references, calibration, novelty, properties)


def _new_state(
    settings: TrainingSettings, references: References, seed: int, device: torch.device, start_from: Ensemble | None
) -> _State:
    architecture = Architecture(
        n_members=settings.n_members,
        n_hosts=len(references.hosts),
        n_outputs=len(references.outputs),
        width=settings.width,
        n_blocks=settings.n_blocks,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SparseDefectNetwork(architecture)
    if start_from is not None:
        _copy_weights(start_from.network, network)
    network = network.to(device)
    decayed = [module.weight for module in network.modules() if isinstance(module, MemberLinear)]
    others = [p for p in network.parameters() if all(p is not weight for weight in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        fused=True,
    )
    return _State(
        network=network,
        averaged=deepcopy(network).requires_grad_(False),
        best=deepcopy(network).requires_grad_(False),
        optimizer=optimizer,
        generator=torch.Generator().manual_seed(seed),
        best_error=torch.full((settings.n_members,), torch.inf, device=device),
    )


@torch.no_grad()
def _copy_weights(old: SparseDefectNetwork, new: SparseDefectNetwork) -> None:
    """Start a network from another one; hosts that only the new one has start from the mean of the old ones."""
    weights = old.state_dict()
    known = weights["embed.host.weight"]  # (n_members, n_hosts, width)
    n_new = new.architecture.n_hosts - known.shape[1]
    weights["embed.host.weight"] = torch.cat([known, known.mean(dim=1, keepdim=True).expand(-1, n_new, -1)], dim=1)
    new.load_state_dict(weights)


def _prepare(rows: LabelledRows, references: References, device: torch.device) -> tuple[_Data, _Data]:
    """Training and validation rows as graphs and standardised targets."""
    hosts = [supercell.host.name for supercell in rows.supercells]
    tables = [pair_table(supercell) for supercell in rows.supercells]
    graphs = ragged_graphs(
        tables, rows.supercell_of_row, rows.configurations, [references.hosts.index(host) for host in hosts]
    )
    offsets = references.offsets([hosts[s] for s in rows.supercell_of_row], rows.configurations)
    targets = references.standardise(output_labels(rows, references.outputs), offsets)
    scales = _group_scales(targets, rows)
    data = []
    for role in (~rows.is_validation, rows.is_validation):
        chosen = np.flatnonzero(role)
        sizes = np.bincount(rows.group_of_row[chosen], minlength=rows.group_of_row.max() + 1)
        data.append(
            _Data(
                select_graphs(graphs, torch.from_numpy(chosen)).to(device),
                torch.from_numpy(targets[chosen]).float().to(device),
                torch.from_numpy(scales[chosen]).float().to(device),
                torch.from_numpy(1.0 / sizes[rows.group_of_row[chosen]]).float().to(device),
            )
        )
    return data[0], data[1]


def _group_scales(targets: NDArray[np.float64], rows: LabelledRows) -> NDArray[np.float64]:
    """(n, n_outputs): standard deviation of the training targets in the group of each row."""
    scales = np.ones_like(targets)
    for group in np.unique(rows.group_of_row):
        of_group = rows.group_of_row == group
        for p in range(targets.shape[1]):
            known = targets[of_group & ~rows.is_validation, p]
            known = known[np.isfinite(known)]
            spread = float(known.std()) if len(known) > 1 else 1.0
            scales[of_group, p] = max(spread, SMALLEST_GROUP_SCALE)
    return scales


def _steps_per_epoch(n_rows: int, settings: TrainingSettings) -> int:
    return -(-n_rows // _batch_rows(n_rows, settings))


def _batch_rows(n_rows: int, settings: TrainingSettings) -> int:
    """Rows of a batch: as set, but at least eight batches in an epoch of a small data set."""
    return max(1, min(settings.batch_rows, n_rows // 8))


def _draw(weights: Tensor, settings: TrainingSettings, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Row numbers of the batches of one epoch: a permutation, or draws by weight where groups differ in size."""
    n_rows = len(weights)
    chances = weights.cpu()
    if torch.allclose(chances, chances[0]):
        order = torch.randperm(n_rows, generator=generator)
    else:
        order = torch.multinomial(chances, n_rows, replacement=True, generator=generator)
    return torch.split(order.to(weights.device), _batch_rows(n_rows, settings))


def _rate(done: float) -> float:
    """Learning rate as a share of its largest value: a linear rise, then a cosine."""
    if done < WARM_UP:
        return done / WARM_UP + 1e-3
    falling = (done - WARM_UP) / (1.0 - WARM_UP)
    return LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + float(np.cos(np.pi * falling)))


_MODULES = ("network", "averaged", "best")
_COUNTERS = ("epoch", "step", "stale_epochs", "elapsed_s")


def _checkpoint(state: _State, references: References) -> bytes:
    """The state as safetensors bytes."""
    tensors = {
        f"{module}.{name}": tensor
        for module in _MODULES
        for name, tensor in getattr(state, module).state_dict().items()
    }
    for number, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors |= {"best_error": state.best_error, "generator": state.generator.get_state()}
    tensors |= references_to_tensors(references)
    card = {
        "counters": {name: getattr(state, name) for name in _COUNTERS},
        "references": references_to_card(references),
    }
    return pack(tensors, card)


def _restore(state: _State, checkpoint: bytes) -> References:
    """Bring a new state to where a checkpoint was; its references."""
    tensors, card = unpack(checkpoint)
    for module in _MODULES:
        prefix = f"{module}."
        getattr(state, module).load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
    saved = state.optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            saved["state"].setdefault(int(number), {})[moment] = tensor
    state.optimizer.load_state_dict(saved)
    state.best_error = tensors["best_error"].to(state.best_error.device)
    state.generator.set_state(tensors["generator"])
    for name in _COUNTERS:
        setattr(state, name, card["counters"][name])
    return references_from(card["references"], tensors)
