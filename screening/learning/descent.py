"""One phase of the training of one host's networks: a step, an epoch, and which weights are kept."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from screening.errors import InputError
from screening.learning.gnn import MemberLinear, SparseDefectNetwork
from screening.learning.graph import Graphs, select_graphs
from screening.learning.settings import TrainingSettings

WARM_UP = 0.02  # share of the steps
LAST_RATE = 0.01  # share of the learning rate at the end of the cosine
SMALLEST_ERROR = 1e-3  # of a group's spread; smaller errors count as this
AVERAGE_DECAY = 0.999  # of the averaged weights
HUBER = 0.1  # errors below this share of a group's spread count quadratically
_EVALUATION_ROWS = 2048
_COUNTERS = ("epoch", "step", "stale_epochs")
_MODULES = ("network", "averaged", "best")


@dataclass(frozen=True, eq=False)
class Rows:
    """What the members learn from, or are measured on.

    Attributes:
        graphs: n of them.
        targets: (n_members, n, n_outputs) float32, standardised; NaN where there is nothing for this member.
        weights: (n,) float32, chance of being drawn.
        group: (n,) int64, row of `spreads` of each.
        spreads: (n_groups, n_outputs) float32, standard deviation of the targets in each group.
    """

    graphs: Graphs
    targets: Tensor
    weights: Tensor
    group: Tensor
    spreads: Tensor


class Descent:
    """A network with all members, its averaged weights, and the best of these.

    Errors count in units of the spread of the labels in their group. Units that follow the errors, so that a per cent
    less would be worth as much where errors are small, do not work: an output that is behind stays behind.

    Attributes:
        best_error: (n_members,) mean logarithm of the errors of the best weights on the rows that each member leaves
            out; inf before the first.
        epoch: epochs that are over.
        stale_epochs: since any member has improved.
    """

    def __init__(self, network: SparseDefectNetwork, settings: TrainingSettings, generator: torch.Generator) -> None:
        self.network = network
        self.averaged = deepcopy(network).requires_grad_(False)
        self.best = deepcopy(network).requires_grad_(False)
        self.generator = generator
        self.best_error = torch.full((settings.n_members,), torch.inf, device=next(network.parameters()).device)
        self.epoch = self.step = self.stale_epochs = 0
        self._settings = settings
        decayed = [module.weight for module in network.modules() if isinstance(module, MemberLinear)]
        others = [p for p in network.parameters() if all(p is not weight for weight in decayed)]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            fused=True,
        )

    def run_epoch(self, rows: Rows, n_steps: int, least_done: float) -> float:
        """As many draws as there are rows; the mean loss.

        Args:
            n_steps: of the whole phase, for the learning rate.
            least_done: share of the phase that is over by the clock.
        """
        losses = []
        for chosen in self.draw(rows.weights):
            rate = self._settings.learning_rate * _rate(min(max(self.step / n_steps, least_done), 1.0))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            outputs = self.network(select_graphs(rows.graphs, chosen))  # (n_members, n, n_outputs)
            targets = rows.targets[:, chosen]
            known = torch.isfinite(targets)
            errors = (outputs - targets.nan_to_num()) / rows.spreads[rows.group[chosen]]
            huber = ((errors**2 + HUBER**2).sqrt() - HUBER) * known
            loss = huber.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)  # (n_members,)
            self._optimizer.zero_grad()
            torch.autograd.backward(loss.sum())  # each member's gradient as if it were alone
            self._optimizer.step()
            self.step += 1
            self._move_average()
            losses.append(loss.detach().mean())
        self.epoch += 1
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def keep_best(self, outputs: Tensor, left_out: Rows) -> None:
        """Keep the averaged weights of the members that have become better on the rows that they leave out.

        Better is a smaller product of the errors of all groups and properties: a tenth less in one outweighs a
        hundredth more in several, whatever their sizes. A member that leaves no row out keeps its newest weights.

        Args:
            outputs: (n_members, n, n_outputs) of the averaged weights.
            left_out: the targets of each member are those of the rows that it leaves out.
        """
        known = torch.isfinite(left_out.targets)  # (n_members, n, n_outputs)
        errors = (outputs - left_out.targets.nan_to_num()).abs() * known
        shape = (len(outputs), *left_out.spreads.shape)
        n_known = errors.new_zeros(shape).index_add_(1, left_out.group, known.float())
        sums = errors.new_zeros(shape).index_add_(1, left_out.group, errors)
        smallest = SMALLEST_ERROR * left_out.spreads
        logarithms = (sums / n_known.clamp(min=1)).maximum(smallest).log()  # (n_members, n_groups, n_outputs)
        measured = (n_known > 0).sum(dim=(1, 2))
        error = (logarithms * (n_known > 0)).sum(dim=(1, 2)) / measured.clamp(min=1)
        better = (error < self.best_error) | (measured == 0)
        self.stale_epochs = 0 if bool((better & (measured > 0)).any()) else self.stale_epochs + 1
        self.best_error = torch.where(better, error, self.best_error)
        for kept, averaged in zip(self.best.parameters(), self.averaged.parameters(), strict=True):
            kept[better] = averaged[better]

    def check(self) -> None:
        """Make sure that the training has not diverged.

        Raises:
            InputError: a member never had a finite error.
        """
        finite = all(bool(torch.isfinite(p).all()) for p in self.best.parameters())
        if not finite or not bool(torch.isfinite(self.best_error).all()):
            raise InputError(
                "the training diverged: its errors are no numbers; check the labels, or lower learning_rate"
            )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The state, as tensors and counters."""
        tensors = {
            f"{module}.{name}": tensor
            for module in _MODULES
            for name, tensor in getattr(self, module).state_dict().items()
        }
        for number, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {"best_error": self.best_error, "generator": self.generator.get_state()}
        return tensors, {name: getattr(self, name) for name in _COUNTERS}

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Bring a new descent to where another one was."""
        for module in _MODULES:
            prefix = f"{module}."
            getattr(self, module).load_state_dict(
                {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            )
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, moment = name.split(".")
                moments.setdefault(int(number), {})[moment] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self.best_error = tensors["best_error"].to(self.best_error.device)
        self.generator.set_state(tensors["generator"])
        for name in _COUNTERS:
            setattr(self, name, counters[name])

    def draw(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Row numbers of the batches of an epoch: a permutation, or draws by weight where groups differ in size."""
        n_rows, chances = len(weights), weights.cpu()
        if torch.allclose(chances, chances[0]):
            order = torch.randperm(n_rows, generator=self.generator)
        else:
            order = torch.multinomial(chances, n_rows, replacement=True, generator=self.generator)
        return torch.split(order.to(weights.device), batch_rows(n_rows, self._settings))

    @torch.no_grad()
    def _move_average(self) -> None:
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        for averaged, current in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            averaged.lerp_(current, 1.0 - decay)


def batch_rows(n_rows: int, settings: TrainingSettings) -> int:
    """Rows of a batch: as set, but at least eight batches in an epoch of a small data set."""
    return max(1, min(settings.batch_rows, n_rows // 8))


def steps_per_epoch(n_rows: int, settings: TrainingSettings) -> int:
    """Number of batches."""
    return -(-n_rows // batch_rows(n_rows, settings))


@torch.no_grad()
def evaluate(network: SparseDefectNetwork, graphs: Graphs) -> Tensor:
    """(n_members, n_graphs, n_outputs) outputs of a network, a part of the graphs at a time."""
    parts = torch.split(torch.arange(graphs.n_graphs, device=graphs.n_defects.device), _EVALUATION_ROWS)
    return torch.cat([network(select_graphs(graphs, part)) for part in parts], dim=1)


def choose_device(name: str) -> torch.device:
    """The device of a setting: `auto` takes a GPU where there is one.

    Raises:
        InputError: `cuda` is wanted and torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("the device shall be cuda, but torch sees no GPU here; choose auto or cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _rate(done: float) -> float:
    """Learning rate as a share of its largest value: a linear rise, then a cosine."""
    if done < WARM_UP:
        return done / WARM_UP + 1e-3
    falling = (done - WARM_UP) / (1.0 - WARM_UP)
    return LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + float(np.cos(np.pi * falling)))
