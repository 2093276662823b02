"""How to train. Without torch, so that what queues a training can check its settings."""

from __future__ import annotations

from dataclasses import dataclass

from screening.errors import InputError

SMALLEST_ENSEMBLE = 3  # fewer members have no spread worth the name


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        n_members: networks of the ensemble.
        epochs: passes over the training rows of each domain, at most (0.4 of it where it begins with the network for
            fewer defects); a tenth of it over these and the drawn ones.
        drawn_rows: configurations per domain that a kernel regression labels and the network learns, at most; may be 0.
        patience: epochs without improvement of any member before training stops; a third of `epochs` if 0.
        max_minutes: time after which the learning rate has come down and training ends; no limit if 0.
        device: `auto` (CUDA where it is), `cpu` or `cuda`.
    """

    n_members: int = 5
    width: int = 32
    n_blocks: int = 2
    epochs: int = 150
    patience: int = 0
    batch_rows: int = 128
    drawn_rows: int = 8000
    learning_rate: float = 8e-3
    weight_decay: float = 1e-3
    max_minutes: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.n_members < SMALLEST_ENSEMBLE:
            raise InputError(f"training setting n_members is {self.n_members}; expected at least {SMALLEST_ENSEMBLE}")
        for name in ("width", "n_blocks", "epochs", "batch_rows", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"training setting {name} is {getattr(self, name)}; it must be positive")
        for name in ("patience", "max_minutes", "weight_decay", "drawn_rows"):
            if not getattr(self, name) >= 0:
                raise InputError(f"training setting {name} is {getattr(self, name)}; it must not be negative")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"training setting device is {self.device!r}; choose auto, cpu or cuda")
