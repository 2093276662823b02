"""The shipped model made again: two trainings, errors on rows that were not learnt, a file that says all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from screening.errors import FileFormatError, InputError, LevelOfTheoryError
from screening.learning.fingerprints import fingerprints_of_rows
from screening.learning.scorer import score_configurations
from screening.learning.settings import TrainingSettings
from screening.learning.training import Progress
from screening.pipeline import reproduction
from screening.pipeline.evaluation import LEARNT
from screening.pipeline.labelled_files import LabelledFiles, read_labelled
from screening.pipeline.model_cards import card_text
from screening.pipeline.pretrained import read_model_file
from screening.pipeline.reproduction import PARTS, RECIPE, reproduce_model, train_part
from tests.synthetic_2dmd import Row, write_subset

RECIPE_OF_TEST = replace(RECIPE, name="made", settings=TrainingSettings(n_members=3, width=16, epochs=3, device="cpu"))


class StoppedError(Exception):
    """Somebody has stopped the training."""


def rows_of_subset() -> tuple[Row, ...]:
    """4x4 MoS2 with one defect on Mo and one on each chalcogen site in turn, and each of the four types alone."""
    energies = {"v_S": 2.75, "Se_S": 0.125, "v_Mo": 7.5, "W_Mo": -0.25}
    configurations: list[tuple[tuple[int, str], ...]] = [((0 if "Mo" in name else 16, name),) for name in energies]
    for site in range(16, 48):
        for metal, chalcogen in (("v_Mo", "v_S"), ("v_Mo", "Se_S"), ("W_Mo", "v_S"), ("W_Mo", "Se_S")):
            configurations.append(((0, metal), (site, chalcogen)))
    return tuple(
        Row(
            f"row-{i}", defects, sum(energies[name] for _, name in defects) + 0.001 * (i % 7),
            split="validation" if i % 9 == 8 else "train",
        )
        for i, defects in enumerate(configurations)
    )  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> LabelledFiles:
    folder = write_subset(tmp_path_factory.mktemp("release") / "low_density_defects" / "MoS2", rows_of_subset())
    return read_labelled(folder.parent.parent)


def nothing(name: str, progress: Progress) -> None:
    """Take no notice."""


def make(labelled: LabelledFiles, output: Path, report: Callable[[str, Progress], None] = nothing) -> Path:
    reproduce_model(labelled, output, recipe=RECIPE_OF_TEST, on_progress=report)
    return output


@pytest.fixture(scope="module")
def made(labelled: LabelledFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(labelled, tmp_path_factory.mktemp("models") / "made.safetensors")


def test_the_file_says_what_was_learnt_and_what_was_measured(labelled: LabelledFiles, made: Path) -> None:
    card = read_model_file(made).card
    (share,) = card.data
    n_measured = sum(split == "validation" for split in labelled.splits)
    assert (share.name, share.n_train, share.n_validation) == ("low_density_defects/MoS2", labelled.n_rows, n_measured)
    energy = [m for m in card.metrics if m.property == "formation_energy_per_site"]
    assert [m.dataset for m in energy] == ["low_density_defects/MoS2"]
    assert all(m.n_rows == n_measured for m in card.metrics)
    assert all(0 < m.mae <= m.rmse for m in energy)
    energies = [row.formation_energy for row in rows_of_subset() if row.name in labelled.names and row.formation_energy]
    assert card.label_ranges["formation_energy"] == pytest.approx((min(energies), max(energies)))
    assert (card.name, card.level.name, card.licence) == ("made", "2DMD PBE", "CC BY 4.0")
    assert [host.name for host in card.hosts] == ["MoS2"]
    assert card.supercells == {"MoS2": ("4x4",)}
    assert card.training["settings"]["epochs"] == 3
    assert set(card.training["CPU time (s)"]) == {"measured model", "shipped model"}
    assert made.with_suffix(".md").read_text() == card_text(card)
    assert sorted(path.name for path in made.parent.iterdir()) == ["made.md", "made.safetensors"]


def test_yardsticks_fitted_to_the_same_rows_stand_beside_the_model(labelled: LabelledFiles, made: Path) -> None:
    """Energies are sums over defects but for a thousandth of an electronvolt: the pair expansion knows them."""
    card = read_model_file(made).card
    found = {y.name: y.mae for y in card.yardsticks if y.property == "formation_energy_per_site"}
    assert set(found) == {"pair expansion", "boosted trees"}
    assert found["pair expansion"] < 0.003
    (own,) = [m.mae for m in card.metrics if m.property == "formation_energy_per_site"]
    (line,) = [
        line
        for line in card_text(card).split("## Beside simple models")[1].splitlines()
        if "formation_energy_per_site" in line
    ]
    shown = [f"{1e3 * error:.1f}" for error in (own, found["pair expansion"], found["boosted trees"])]
    least = min(own, *found.values())
    expected = [
        f"**{text}**" if error == least else text for text, error in zip(shown, (own, *found.values()), strict=True)
    ]
    assert line.endswith(f"| {' | '.join(expected)} |")


def test_the_errors_are_those_of_a_model_that_has_not_seen_the_rows(labelled: LabelledFiles, tmp_path: Path) -> None:
    """Labels of the rows that measure are made absurd: the model that measures stays as it is, its errors do not."""
    measuring = np.array([split == "validation" for split in labelled.splits])
    labels = labelled.labels.copy()
    labels[measuring] += 100.0
    card = read_model_file(make(replace(labelled, labels=labels), tmp_path / "absurd.safetensors")).card
    errors = [m.mae for m in card.metrics if m.property == "formation_energy_per_site"]
    assert all(error > 90.0 for error in errors)


def test_the_weights_have_learnt_from_all_rows_and_know_which(labelled: LabelledFiles, made: Path) -> None:
    ensemble = read_model_file(made).ensemble()
    np.testing.assert_array_equal(ensemble.extra[LEARNT], np.unique(fingerprints_of_rows(labelled)))


def test_the_same_weights_come_out_again_also_of_a_run_that_was_stopped(
    labelled: LabelledFiles, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduction, "CHECKPOINT_S", 0.0)
    output = tmp_path / "made.safetensors"
    seen: list[tuple[str, int]] = []

    def stop(name: str, progress: Progress) -> None:
        seen.append((name, progress.epoch))
        if len(seen) in (2, 5):
            raise StoppedError

    for _ in range(2):
        with pytest.raises(StoppedError):
            make(labelled, output, stop)
        assert not output.exists()
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith(".made-")
    make(labelled, output, stop)
    assert seen == [
        *(("measured", epoch) for epoch in (1, 2, 2, 3, 4, 4)),  # stopped in both phases
        *(("shipped", epoch) for epoch in (1, 2, 3, 4)),
    ]
    again, before = load(output.read_bytes()), load(made.read_bytes())
    assert again.keys() == before.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)
    assert read_model_file(output).card.metrics == read_model_file(made).card.metrics
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.md", "made.safetensors"]


def test_two_processes_may_share_the_work(labelled: LabelledFiles, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "made.safetensors"
    seen: set[str] = set()

    def note(name: str, progress: Progress) -> None:
        seen.add(name)

    for part in reversed(PARTS):
        train_part(labelled, output, part, recipe=RECIPE_OF_TEST, on_progress=note)
        assert seen.pop() == part
    assert not output.exists()
    make(labelled, output, note)
    assert not seen
    again, before = load(output.read_bytes()), load(made.read_bytes())
    for name, tensor in before.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)
    with pytest.raises(InputError, match="'both' is none of the trainings"):
        train_part(labelled, output, "both", recipe=RECIPE_OF_TEST, on_progress=note)


def test_checkpoints_of_other_settings_are_not_taken(labelled: LabelledFiles, tmp_path: Path) -> None:
    output = tmp_path / "made.safetensors"

    def stop(name: str, progress: Progress) -> None:
        raise StoppedError

    for seed in (0, 1):
        with pytest.raises(StoppedError):
            reproduce_model(labelled, output, recipe=replace(RECIPE_OF_TEST, seed=seed), on_progress=stop)
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_without_a_split_are_split_by_what_they_are(labelled: LabelledFiles, tmp_path: Path) -> None:
    bare = replace(labelled, splits=(None,) * labelled.n_rows)
    first = read_model_file(make(bare, tmp_path / "first.safetensors")).card.data
    order = np.random.default_rng(0).permutation(labelled.n_rows)
    second = read_model_file(make(bare.chosen(order), tmp_path / "second.safetensors")).card.data
    assert 0 < first[0].n_validation < labelled.n_rows / 2
    assert first == second


def test_rows_of_a_test_split_are_left_out_of_everything(labelled: LabelledFiles, tmp_path: Path) -> None:
    splits = tuple("test" if i % 4 == 1 else split for i, split in enumerate(labelled.splits))
    output = make(replace(labelled, splits=splits), tmp_path / "made.safetensors")
    (share,) = read_model_file(output).card.data
    assert share.n_train == sum(split != "test" for split in splits)
    tested = labelled.chosen(np.array([split == "test" for split in splits]))
    assert not np.isin(fingerprints_of_rows(tested), read_model_file(output).ensemble().extra[LEARNT]).any()


def test_rows_of_several_levels_of_theory_are_refused(labelled: LabelledFiles, tmp_path: Path) -> None:
    for levels in ((None,), ()):
        with pytest.raises(LevelOfTheoryError, match="none that is known"):
            make(replace(labelled, levels=levels), tmp_path / "made.safetensors")


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_trained(
    labelled: LabelledFiles, tmp_path: Path
) -> None:
    def fail(name: str, progress: Progress) -> None:
        raise AssertionError

    for output in (tmp_path / "absent" / "made.safetensors", tmp_path / "made.pt"):
        with pytest.raises(FileFormatError):
            make(labelled, output, fail)


def test_the_model_predicts_from_its_file_alone(labelled: LabelledFiles, made: Path) -> None:
    mean, std = score_configurations(
        read_model_file(made).ensemble(), labelled.supercells[0], labelled.configurations, device="cpu"
    )
    assert np.isfinite(mean).all()
    assert (std >= 0).all()
