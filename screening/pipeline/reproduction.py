"""The models that the package ships, made again from their data by one command.

Two trainings with the same settings and seed. The first learns from the training rows only, and the other rows say how
good it is: these errors and coverages go into the card. The second learns from all rows, and its weights ship; they
cannot be measured any more, and are better than the card says if anything. Both write checkpoints beside the output,
so that the same command goes on after whatever stopped it. On one machine the same weights come out every time.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import screening
from screening.dft.results import LevelOfTheory
from screening.errors import InputError, LevelOfTheoryError
from screening.learning.fingerprints import fingerprints_of_rows
from screening.learning.references import ENERGY_PER_SITE
from screening.learning.settings import TrainingSettings
from screening.pipeline.evaluation import LEARNT, Evaluation, evaluate_ensemble, metrics_by_subset
from screening.pipeline.labelled_files import LabelledFiles
from screening.pipeline.model_cards import CardMetric, CardYardstick, DataShare, ModelCard, card_text
from screening.pipeline.pretrained import (
    DEFAULT_MODEL,
    check_output,
    in_half_precision,
    unpack_model,
    with_card,
    write_model_file,
)
from screening.pipeline.yardsticks import FEWEST_ROWS, fit_yardsticks, yardstick_errors

if TYPE_CHECKING:
    from screening.learning.dataset import LabelledRows
    from screening.learning.ensemble import Ensemble
    from screening.learning.training import Progress

MEASURED, SHIPPED = PARTS = ("measured", "shipped")
CHECKPOINT_S = 30.0
VALIDATION_PARTS = 5  # of rows without a split every fifth measures, chosen by what it is
_SMALLEST_STD = 1e-4  # eV or Bohr magneton; smaller changes are none
_SHOWN_BESIDE_YARDSTICKS = (ENERGY_PER_SITE, "homo_lumo_gap_min")
_PACKAGES = ("torch", "numpy", "screening")

OnProgress = Callable[[str, "Progress"], None]
"""Called after each epoch with the name of the training, one of `PARTS`."""


@dataclass(frozen=True)
class Recipe:
    """What a shipped model is made by, and what its card says beside numbers.

    Attributes:
        settings: of both trainings; no time limit, which would make another model on another machine.
    """

    name: str
    source: str
    licence: str
    citations: tuple[str, ...]
    limits: tuple[str, ...]
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = 0


RECIPE = Recipe(
    name=DEFAULT_MODEL,
    source="2DMD: DFT (VASP, PBE) results for point defects in 2D materials, unrelaxed sites in, relaxed energies out. "
    "Huang et al., npj 2D Mater. Appl. 7, 6 (2023), doi 10.1038/s41699-023-00369-1.",
    licence="CC BY 4.0",
    citations=(
        "Data: Huang et al., npj 2D Mater. Appl. 7, 6 (2023), doi 10.1038/s41699-023-00369-1.",
        "Method: Kazeev et al., npj Comput. Mater. 9, 113 (2023), doi 10.1038/s41524-023-01062-z.",
    ),
    limits=(
        "Neutral vacancies and substitutions only: no charged defects, interstitials, adatoms or edges.",
        "Only the hosts named above with the defect types they were seen with; anything else is refused.",
        "Formation energies refer to the chemical potentials of the data set, which are limits of no particular growth "
        "condition; add the difference for yours. Other functionals give other numbers.",
        "Learnt from one supercell for each host. Others are predicted too, but images of a defect are nearer in a "
        "smaller cell and the number of defects per area differs: look at beyond_training and at the standard "
        "deviations.",
        "MoS2 and WSe2 were calculated without spin: their magnetisation is 0 and both channels have one gap.",
        "homo and lumo are Kohn-Sham levels on the energy scale of each calculation, hardly comparable between hosts.",
    ),
)


def train_part(
    labelled: LabelledFiles, output: Path, part: str, *, recipe: Recipe = RECIPE, on_progress: OnProgress
) -> None:
    """Do one of the two trainings of `reproduce_model`, which then finds it done: two processes share the work.

    Raises:
        InputError: there is no such part, or as `reproduce_model` says.
    """
    if part not in PARTS:
        raise InputError(f"{part!r} is none of the trainings of a model; they are {', '.join(PARTS)}")
    labelled = _usable(labelled)
    _Work(output, recipe, labelled.digest).train(part, _rows(labelled, part), on_progress)


def reproduce_model(
    labelled: LabelledFiles, output: Path, *, recipe: Recipe = RECIPE, on_progress: OnProgress
) -> ModelCard:
    """Train and measure a model on labelled rows, and write it with its card (`<output>.md`).

    Rows of the split `test` are left out of everything.

    Args:
        output: a .safetensors file; checkpoints lie in a folder beside it until it is written.

    Raises:
        InputError: there are no rows to learn from or to measure on, or the output cannot be written.
        LevelOfTheoryError: the rows are not all of one level of theory.
    """
    from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes

    labelled, device = _usable(labelled), recipe.settings.device
    work = _Work(output, recipe, labelled.digest)
    measured, trained = (work.train(part, _rows(labelled, part), on_progress) for part in PARTS)
    measuring = _measuring_rows(labelled)
    learnt = fingerprints_of_rows(labelled.chosen(~measuring))
    evaluation = evaluate_ensemble(measured, labelled.chosen(measuring), learnt=learnt, device=device)
    trained = replace(trained, extra={**trained.extra, LEARNT: np.unique(fingerprints_of_rows(labelled))})
    packed = in_half_precision(ensemble_to_bytes(trained))
    rounded = ensemble_from_bytes(packed)
    change = _largest_change(trained, rounded, labelled, device)
    card = _card(recipe, labelled, rounded, evaluation, training=_training_card(recipe, labelled, work, change))
    card = replace(card, yardsticks=_yardsticks(evaluation, labelled.chosen(~measuring)))
    write_model_file(output, unpack_model(with_card(packed, card), recipe.name))
    output.with_suffix(".md").write_text(card_text(card))
    work.remove()
    return card


def _largest_change(one: Ensemble, other: Ensemble, labelled: LabelledFiles, device: str) -> float:
    """Largest difference of the means of two models on labelled rows, in standard deviations."""
    from screening.learning.scorer import score_configurations

    largest = 0.0
    for number, supercell in enumerate(labelled.supercells):
        chosen = [labelled.configurations[i] for i in np.flatnonzero(labelled.supercell_of_row == number)]
        mean, std = score_configurations(one, supercell, chosen, device=device)
        changed, _ = score_configurations(other, supercell, chosen, device=device)
        largest = max(largest, float((np.abs(changed - mean) / np.maximum(std, _SMALLEST_STD)).max(initial=0.0)))
    return largest


def _card(
    recipe: Recipe, labelled: LabelledFiles, trained: Ensemble, evaluation: Evaluation, *, training: dict[str, Any]
) -> ModelCard:
    hosts = {supercell.host.name: supercell.host for supercell in labelled.supercells}
    return ModelCard(
        name=recipe.name,
        level=_only_level(labelled),
        hosts=tuple(hosts[name] for name in trained.references.hosts),
        properties=trained.properties,
        supercells={
            name: tuple(sorted({s.label for s in labelled.supercells if s.host.name == name})) for name in hosts
        },
        data=_shares(labelled, _measuring_rows(labelled)),
        label_ranges=_label_ranges(labelled, trained.properties),
        source=recipe.source,
        licence=recipe.licence,
        citations=recipe.citations,
        split="The weights have learnt from all rows. The errors are those of a model of the same settings and seed "
        "that learnt from the other rows only, on rows that it never saw.",
        training=training,
        metrics=_metrics(evaluation),
        limits=recipe.limits,
    )


class _Work:
    """A folder beside the output with what the trainings have reached so far.

    Its name holds a digest of data, recipe and program: other ones begin anew in a folder of their own.
    """

    def __init__(self, output: Path, recipe: Recipe, data_digest: str) -> None:
        check_output(output)
        text = json.dumps([asdict(recipe), data_digest, _versions(), _program_digest()], sort_keys=True)
        self.folder = output.with_name(f".{output.stem}-{sha256(text.encode()).hexdigest()[:12]}")
        self.folder.mkdir(exist_ok=True)
        self._recipe = recipe

    @property
    def cpu_times(self) -> dict[str, float]:
        """Seconds of processor time that each training has taken so far, all attempts together."""
        files = {part: self._time_file(part) for part in PARTS}
        return {part: float(file.read_text()) for part, file in files.items() if file.is_file()}

    def train(self, name: str, rows: LabelledRows, on_progress: OnProgress) -> Ensemble:
        """The finished training of this name: as it was left, gone on with, or begun."""
        from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes
        from screening.learning.training import train_ensemble

        finished, checkpoint = (self.folder / f"{name}{kind}.safetensors" for kind in ("", ".checkpoint"))
        if finished.is_file():
            return ensemble_from_bytes(finished.read_bytes())
        spent, started, last_checkpoint = self.cpu_times.get(name, 0.0), time.process_time(), time.monotonic()

        def report(progress: Progress, make_checkpoint: Callable[[], bytes]) -> None:
            nonlocal last_checkpoint
            on_progress(name, progress)
            if time.monotonic() - last_checkpoint > CHECKPOINT_S:
                last_checkpoint = time.monotonic()
                self._write(checkpoint, make_checkpoint())
                self._note_time(name, spent + time.process_time() - started)

        ensemble = train_ensemble(
            rows,
            self._recipe.settings,
            seed=self._recipe.seed,
            on_progress=report,
            resume_from=checkpoint.read_bytes() if checkpoint.is_file() else None,
        )
        self._note_time(name, spent + time.process_time() - started)
        self._write(finished, ensemble_to_bytes(ensemble))
        return ensemble

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _time_file(self, name: str) -> Path:
        return self.folder / f"{name}.cpu_seconds"

    def _note_time(self, name: str, seconds: float) -> None:
        self._write(self._time_file(name), f"{seconds:.1f}".encode())

    def _write(self, path: Path, content: bytes) -> None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(content)
        partial.replace(path)


def _usable(labelled: LabelledFiles) -> LabelledFiles:
    """The rows without those of a test.

    Raises:
        LevelOfTheoryError: they are not all of one level of theory.
    """
    _only_level(labelled)
    return labelled.chosen(np.array([split != "test" for split in labelled.splits], bool))


def _only_level(labelled: LabelledFiles) -> LevelOfTheory:
    levels = {level.digest: level for level in labelled.levels if level is not None}
    if len(levels) != 1 or None in labelled.levels:
        found = ", ".join(sorted(level.name for level in levels.values())) or "none that is known"
        raise LevelOfTheoryError(
            f"the labels are at the levels of theory {found}; a model has one: give it a release of one level"
        )
    return next(iter(levels.values()))


def _measuring_rows(labelled: LabelledFiles) -> NDArray[np.bool_]:
    """(n,) bool: the rows that the first training does not see; a fixed fifth where the data set has no split."""
    if any(split is not None for split in labelled.splits):
        return np.array([split == "validation" for split in labelled.splits], bool)
    return np.asarray(fingerprints_of_rows(labelled) % VALIDATION_PARTS == 0)


def _rows(labelled: LabelledFiles, part: str) -> LabelledRows:
    """The rows as a training takes them."""
    measuring = _measuring_rows(labelled) if part == MEASURED else np.zeros(labelled.n_rows, bool)
    return labelled.rows(measuring)


def _shares(labelled: LabelledFiles, measuring: NDArray[np.bool_]) -> tuple[DataShare, ...]:
    of_subset = [labelled.group_of_row == number for number in range(len(labelled.subsets))]
    return tuple(
        DataShare(name, int(rows.sum()), int((rows & measuring).sum()))
        for name, rows in zip(labelled.subsets, of_subset, strict=True)
    )


def _label_ranges(labelled: LabelledFiles, properties: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    columns = {name: labelled.labels[:, p] for p, name in enumerate(labelled.properties)}
    return {name: (float(np.nanmin(columns[name])), float(np.nanmax(columns[name]))) for name in properties}


def _metrics(evaluation: Evaluation) -> tuple[CardMetric, ...]:
    """Errors and coverages of every property, the mean of the subsets first."""
    names = ("n_rows", "mae", "rmse", "within", "coverage_68", "coverage_95")
    return tuple(
        CardMetric(row.subset, row.property, **{name: getattr(row.metrics, name) for name in names})
        for property_name in evaluation.properties
        for row in metrics_by_subset(evaluation, property_name)
    )


def _yardsticks(evaluation: Evaluation, learnt: LabelledFiles) -> tuple[CardYardstick, ...]:
    """Errors of the yardsticks; none where there are too few rows to fit them to."""
    wanted = [name for name in _SHOWN_BESIDE_YARDSTICKS if name in evaluation.properties]
    n_learnt = np.bincount(learnt.group_of_row, minlength=len(learnt.subsets))
    if not wanted or not (n_learnt[np.unique(evaluation.rows.group_of_row)] >= FEWEST_ROWS).any():
        return ()
    yardsticks = fit_yardsticks(evaluation, learnt, properties=wanted, on_progress=lambda text: None)
    return tuple(
        CardYardstick(yardstick.name, subset, name, error)
        for name in wanted
        for yardstick in yardsticks
        for subset, error in yardstick_errors(evaluation, yardstick, name).items()
    )


def _training_card(recipe: Recipe, labelled: LabelledFiles, work: _Work, change: float) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(recipe.settings).items() if name not in ("device", "max_minutes")}
    return {
        "seed": recipe.seed,
        "settings": settings,
        "data sha256": labelled.digest,
        "CPU time (s)": {f"{name} model": seconds for name, seconds in work.cpu_times.items()},
        "device": recipe.settings.device,
        "machine": platform.machine(),
        "weights": f"half precision, which moves no mean of a labelled row by more than {change:.2g} of its standard "
        "deviation",
        "versions": _versions(),
        "commit": _commit() or "not known",
        "made at": datetime.now(UTC).date().isoformat(),
        "again with": "screening model reproduce DATA",
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _program_digest() -> str:
    """Of the programs that a training depends on: a checkpoint of others is of no use."""
    root = Path(screening.__file__).parent
    files = sorted(path for package in ("learning", "defects") for path in (root / package).glob("*.py"))
    return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _commit() -> str | None:
    """The commit of this program, marked where files differ from it; None where it is not in its repository."""
    root = Path(screening.__file__).parent
    git = ["git", "-C", str(root)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        found = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
