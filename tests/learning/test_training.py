"""Training: it learns, it resumes, it stops, it starts from an older model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from screening.errors import InputError
from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes
from screening.learning.dataset import LabelledRows
from screening.learning.descent import Descent, evaluate
from screening.learning.domain_rows import group_weights
from screening.learning.ensemble import Domain, Ensemble
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.graph import pair_table, ragged_graphs
from screening.learning.references import fit_references
from screening.learning.scorer import score_configurations
from screening.learning.settings import TrainingSettings
from screening.learning.training import Progress, train_ensemble
from tests.learning.synthetic import SMALL, labelled_rows


def errors_of(ensemble: Ensemble, rows: LabelledRows) -> np.ndarray:
    """Validation errors (n, n_properties)."""
    chosen = np.flatnonzero(rows.is_validation)
    mean, _ = score_configurations(ensemble, rows.supercells[0], [rows.configurations[i] for i in chosen], device="cpu")
    return np.asarray(mean - rows.labels[chosen])


def rows_of_two_hosts(n_rows: int) -> LabelledRows:
    """Rows of MoS2 and of a host with another name, in turn."""
    rows = labelled_rows(n_rows, seed=4)
    host = replace(rows.supercells[0].host, name="other")
    return replace(
        rows,
        supercells=(rows.supercells[0], replace(rows.supercells[0], host=host)),
        supercell_of_row=np.arange(n_rows) % 2,
        group_of_row=np.arange(n_rows) % 2,
    )


def test_interactions_are_learnt_far_beyond_the_references(ensemble: Ensemble, rows: LabelledRows) -> None:
    references = fit_references(rows)
    chosen = np.flatnonzero(rows.is_validation)
    offsets = references.offsets(["MoS2"] * len(chosen), [rows.configurations[i] for i in chosen])
    without = np.abs(offsets[:, 0] - rows.labels[chosen, 1]).mean()
    learnt = np.abs(errors_of(ensemble, rows)[:, 1]).mean()
    assert learnt < 0.3 * without


def test_total_and_per_site_energies_agree(ensemble: Ensemble, rows: LabelledRows) -> None:
    mean, std = score_configurations(ensemble, rows.supercells[0], rows.configurations[:30], device="cpu")
    np.testing.assert_allclose(mean[:, 0], mean[:, 1] * rows.n_defects[:30])
    np.testing.assert_allclose(std[:, 0], std[:, 1] * rows.n_defects[:30])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(rows: LabelledRows) -> None:
    settings = replace(SMALL, epochs=2)
    packed = [
        ensemble_to_bytes(train_ensemble(rows, settings, seed=seed, on_progress=lambda p, c: None))
        for seed in (5, 5, 6)
    ]
    assert packed[0] == packed[1]
    assert packed[0] != packed[2]


def test_a_resumed_training_ends_as_an_undisturbed_one() -> None:
    rows = rows_of_two_hosts(160)  # after six epochs a network knows less than the kernel regression
    settings = replace(SMALL, epochs=6, drawn_rows=40)
    checkpoints: list[bytes] = []

    def keep(progress: Progress, make_checkpoint: object) -> None:
        assert callable(make_checkpoint)
        checkpoints.append(make_checkpoint())

    whole = train_ensemble(rows, settings, seed=2, on_progress=keep)
    assert len(checkpoints) == 2 * 7  # six epochs of results, one with drawn rows, for each of two hosts
    packed = ensemble_to_bytes(whole)
    for after in (2, 6, 9):  # within a phase, at the end of a host, in the second host
        seen: list[Progress] = []
        resumed = train_ensemble(
            rows, settings, seed=2, on_progress=lambda p, c, seen=seen: seen.append(p), resume_from=checkpoints[after]
        )
        assert [progress.epoch for progress in seen] == list(range(after + 2, 15))
        assert ensemble_to_bytes(resumed) == packed


def test_training_stops_when_nothing_improves(rows: LabelledRows) -> None:
    """Labels that are noise cannot be predicted: validation errors stop falling at once."""
    noise = np.random.default_rng(0).normal(size=rows.labels.shape)
    epochs: list[int] = []
    train_ensemble(
        replace(rows, labels=noise),
        replace(SMALL, epochs=200, patience=10),
        seed=0,
        on_progress=lambda p, c: epochs.append(p.epoch),
    )
    assert epochs[-1] < 150


def test_a_time_limit_ends_the_training_with_a_low_learning_rate(rows: LabelledRows) -> None:
    epochs: list[int] = []
    train_ensemble(
        rows,
        replace(SMALL, epochs=100_000, max_minutes=0.05),
        seed=0,
        on_progress=lambda p, c: epochs.append(p.epoch),
    )
    assert 1 <= epochs[-1] < 10_000


def test_an_exception_of_the_listener_ends_the_training(rows: LabelledRows) -> None:
    def stop(progress: Progress, make_checkpoint: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_ensemble(rows, SMALL, seed=0, on_progress=stop)


def test_retraining_starts_from_the_older_model_and_keeps_its_references(ensemble: Ensemble) -> None:
    more = labelled_rows(300, seed=9)
    first: list[Progress] = []
    retrained = train_ensemble(
        more,
        TrainingSettings(epochs=3, drawn_rows=0, device="cpu"),
        seed=0,
        on_progress=lambda p, c: first.append(p),
        start_from=ensemble,
    )
    assert retrained.n_members == ensemble.n_members
    assert first[-1].epoch == 3
    np.testing.assert_array_equal(retrained.references.energies, ensemble.references.energies)
    before, after = (np.abs(errors_of(e, more)[:, 1]).mean() for e in (ensemble, retrained))
    assert after < 1.2 * before


def test_retraining_can_take_in_a_host_that_is_new(ensemble: Ensemble, rows: LabelledRows) -> None:
    both = rows_of_two_hosts(120)
    settings = TrainingSettings(epochs=4, drawn_rows=0, device="cpu")
    retrained = train_ensemble(both, settings, seed=0, on_progress=lambda p, c: None, start_from=ensemble)
    assert retrained.references.hosts == ("MoS2", "other")
    mean, _ = score_configurations(retrained, both.supercells[1], both.configurations[:5], device="cpu")
    assert np.isfinite(mean).all()


def test_hosts_that_have_nothing_new_keep_their_networks(ensemble: Ensemble) -> None:
    both = rows_of_two_hosts(120)
    settings = TrainingSettings(epochs=2, drawn_rows=0, device="cpu")
    hosts: set[str] = set()
    retrained = train_ensemble(
        both, settings, seed=0, on_progress=lambda p, c: hosts.add(p.host), start_from=ensemble, changed=[("other", 2)]
    )
    assert hosts == {"other"}
    for name, weights in ensemble.networks[0].state_dict().items():
        assert torch.equal(weights, retrained.networks[0].state_dict()[name])


def test_many_results_of_few_defects_have_a_network_of_their_own(
    ensemble: Ensemble, rows: LabelledRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("screening.learning.domain_rows.SPARSE", 2)
    monkeypatch.setattr("screening.learning.domain_rows.FEWEST_SPARSE_ROWS", 100)
    settings = replace(SMALL, epochs=3)
    trained = train_ensemble(rows, settings, seed=0, on_progress=lambda p, c: None)
    assert trained.domains == (Domain("MoS2", 2), Domain("MoS2"))
    assert trained.network_of("MoS2", 2) is trained.networks[0]
    assert trained.network_of("MoS2", 3) is trained.networks[1]
    again = ensemble_from_bytes(ensemble_to_bytes(trained))
    assert again.domains == trained.domains
    retrained = train_ensemble(
        rows, settings, seed=0, on_progress=lambda p, c: None, start_from=trained, changed=[("MoS2", 3)]
    )
    assert retrained.domains == trained.domains
    for number, is_same in ((0, True), (1, False)):
        weights = [e.networks[number].pair_outputs.weight for e in (trained, retrained)]
        assert torch.equal(*weights) == is_same
    assert train_ensemble(rows, settings, seed=0, on_progress=lambda p, c: None, start_from=ensemble).domains == (
        Domain("MoS2"),
    )


def test_results_of_few_defects_alone_can_be_learnt_by_a_model_that_has_a_network_for_them(
    rows: LabelledRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network for many defects learns these results too and serves none of them: its error bars stay."""
    monkeypatch.setattr("screening.learning.domain_rows.SPARSE", 2)
    monkeypatch.setattr("screening.learning.domain_rows.FEWEST_SPARSE_ROWS", 100)
    settings = replace(SMALL, epochs=3)
    trained = train_ensemble(rows, settings, seed=0, on_progress=lambda p, c: None)
    few = rows.chosen(np.flatnonzero(rows.n_defects <= 2))
    for changed in (None, [("MoS2", 2)]):
        retrained = train_ensemble(
            few, settings, seed=0, on_progress=lambda p, c: None, start_from=trained, changed=changed
        )
        of_three = [e.calibration.factors[0, 2] for e in (trained, retrained)]
        np.testing.assert_array_equal(*of_three)


def test_what_was_learnt_stays_though_new_results_all_have_one_value(ensemble: Ensemble, rows: LabelledRows) -> None:
    labels = rows.labels[:40].copy()
    labels[:, 2] = 1.25
    same = replace(rows.chosen(np.arange(40)), labels=labels)
    settings = replace(SMALL, epochs=2)
    retrained = train_ensemble(same, settings, seed=0, on_progress=lambda p, c: None, start_from=ensemble)
    before, after = (np.abs(errors_of(e, rows)[:, 2]).mean() for e in (ensemble, retrained))
    assert after < 3 * before
    assert not retrained.networks[0].silent_outputs().any()


def test_what_never_varies_in_a_host_is_its_mean_there_and_learnt_elsewhere() -> None:
    both = rows_of_two_hosts(160)
    labels = both.labels.copy()
    labels[both.supercell_of_row == 0, 2] = 0.75
    trained = train_ensemble(
        replace(both, labels=labels), replace(SMALL, epochs=20), seed=0, on_progress=lambda p, c: None
    )
    assert [n.silent_outputs().tolist() for n in trained.networks] == [[False, True], [False, False]]
    mean, _ = score_configurations(trained, both.supercells[0], both.configurations[:9], device="cpu")
    np.testing.assert_allclose(mean[:, 2], 0.75, atol=1e-9)
    mean, _ = score_configurations(trained, both.supercells[1], both.configurations[:9], device="cpu")
    assert mean[:, 2].std() > 0.05


def test_outputs_are_scaled_without_another_operation(ensemble: Ensemble, rows: LabelledRows) -> None:
    network = deepcopy(ensemble.networks[0])
    graphs = ragged_graphs([pair_table(rows.supercells[0])], np.zeros(20, np.int64), rows.configurations[:20])
    factors = torch.tensor([2.0, 0.25])
    before = evaluate(network, graphs)
    network.scale_outputs(factors)
    torch.testing.assert_close(evaluate(network, graphs), before * factors)


def test_outputs_are_shifted_for_each_member(ensemble: Ensemble, rows: LabelledRows) -> None:
    network = deepcopy(ensemble.networks[0])
    graphs = ragged_graphs([pair_table(rows.supercells[0])], np.zeros(20, np.int64), rows.configurations[:20])
    by = torch.arange(2.0 * ensemble.n_members).reshape(-1, 2) - 1.0
    before = evaluate(network, graphs)
    network.shift_outputs(by)
    torch.testing.assert_close(evaluate(network, graphs), before + by[:, None])


def test_rows_that_another_network_serves_are_drawn_as_often_as_the_others_together() -> None:
    groups, is_served_else = np.repeat([0, 1, 2], [900, 100, 25]), np.repeat([True, False], [900, 125])
    weights = group_weights(groups, is_served_else=is_served_else)
    assert weights[is_served_else].sum() == pytest.approx(weights[~is_served_else].sum())
    assert weights[groups == 1].sum() == pytest.approx(2 * weights[groups == 2].sum())
    plain = group_weights(groups, is_served_else=np.zeros(1025, np.bool_))
    assert plain[groups == 0].sum() == pytest.approx(3 * plain[groups == 1].sum())


def test_rows_for_validation_are_not_looked_at(rows: LabelledRows) -> None:
    labels = rows.labels.copy()
    labels[rows.is_validation] = 1e3
    settings = replace(SMALL, epochs=2, drawn_rows=40)
    packed = [
        ensemble_to_bytes(train_ensemble(given, settings, seed=0, on_progress=lambda p, c: None))
        for given in (rows, replace(rows, labels=labels))
    ]
    assert packed[0] == packed[1]


def rows_of_donors_and_acceptors(n_rows: int) -> LabelledRows:
    """Energies that depend on which defects are more: a network that sums over pairs needs many rows to see it."""
    rows = labelled_rows(n_rows, seed=2)
    donors = np.array([sum(code == 16 * 128 for code in c.defect_types) for c in rows.configurations])
    energy = np.abs(2 * donors - rows.n_defects) + 0.05 * np.random.default_rng(0).normal(size=n_rows)
    return replace(rows, labels=np.stack([energy, energy / rows.n_defects, rows.labels[:, 2]], axis=1))


def test_what_a_kernel_regression_knows_better_is_taught_to_the_network() -> None:
    few = rows_of_donors_and_acceptors(60)
    errors = []
    for drawn_rows in (0, 1000):
        epochs: list[int] = []
        settings = replace(SMALL, epochs=60, drawn_rows=drawn_rows)
        trained = train_ensemble(few, settings, seed=1, on_progress=lambda p, c, to=epochs: to.append(p.epoch))
        errors.append(np.abs(errors_of(trained, few)[:, 1]).mean())
        assert (max(epochs) > 60) == (drawn_rows > 0)  # a second phase
    assert errors[1] < 0.9 * errors[0]


def test_what_the_network_knows_better_is_left_alone() -> None:
    epochs: list[int] = []
    settings = replace(SMALL, epochs=100, drawn_rows=400)
    rows = labelled_rows(90)
    rows.labels[:, 2] = 0.25
    train_ensemble(rows, settings, seed=1, on_progress=lambda p, c: epochs.append(p.epoch))
    assert max(epochs) <= 100  # no second phase


def test_missing_labels_are_left_out(rows: LabelledRows) -> None:
    labels = rows.labels.copy()
    labels[::2, 2] = np.nan
    trained = train_ensemble(
        replace(rows, labels=labels), replace(SMALL, epochs=2), seed=0, on_progress=lambda p, c: None
    )
    assert np.isfinite(trained.references.means).all()
    assert all(bool(torch.isfinite(weights).all()) for weights in trained.networks[0].state_dict().values())


def test_a_training_that_diverges_is_an_error_and_no_model(rows: LabelledRows) -> None:
    losses: list[float] = []
    with pytest.raises(InputError, match="diverged"):
        train_ensemble(
            rows,
            replace(SMALL, epochs=5, learning_rate=1e30),
            seed=0,
            on_progress=lambda p, c: losses.append(p.train_loss),
        )
    assert not np.isfinite(losses[-1])


def test_rows_are_drawn_by_their_weights() -> None:
    weights = torch.tensor([1.0 / 180] * 180 + [1.0 / 20] * 20)
    network = SparseDefectNetwork(Architecture(n_members=3, n_outputs=2, width=8))
    descent = Descent(network, SMALL, torch.Generator().manual_seed(0))
    drawn = torch.cat([torch.cat(descent.draw(weights)) for _ in range(50)])
    assert len(drawn) == 50 * 200
    assert 0.47 < float((drawn >= 180).float().mean()) < 0.53


@pytest.mark.parametrize(
    "fault",
    [{"epochs": 0}, {"n_members": 2}, {"device": "tpu"}, {"max_minutes": -1.0}, {"learning_rate": float("nan")}],
)
def test_settings_that_make_no_sense_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(InputError, match=str(next(iter(fault)))):
        TrainingSettings(**fault)  # type: ignore[arg-type]


def test_a_property_that_never_varies_is_predicted_exactly(rows: LabelledRows) -> None:
    labels = rows.labels.copy()
    labels[:, 2] = 0.25
    trained = train_ensemble(
        replace(rows, labels=labels), replace(SMALL, epochs=2), seed=0, on_progress=lambda p, c: None
    )
    mean, std = score_configurations(trained, rows.supercells[0], rows.configurations[:9], device="cpu")
    np.testing.assert_array_equal(mean[:, 2], 0.25)
    np.testing.assert_array_equal(std[:, 2], 0.0)
