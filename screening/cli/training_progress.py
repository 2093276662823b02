"""How far a training is, for the bar of a command that waits."""

from __future__ import annotations

from screening.cli.output import Tick
from screening.cli.project import Project


def look_at_training(project: Project, model_id: int) -> Tick:
    """Epochs of a training, with the errors on validation rows."""
    from screening.pipeline import models

    with project.transaction() as session:
        found = models.progress(session, model_id)
    latest = found.latest
    errors = latest.get("validation_mae", {})
    text = ", ".join(
        f"{short} {1000 * errors[name]:.1f} meV"
        for name, short in (("formation_energy_per_site", "energy"), ("homo_lumo_gap_min", "gap"))
        if errors.get(name) is not None
    )
    return Tick(
        latest.get("epoch", 0), latest.get("max_epochs", 0), text, started=found.state == "running", over=found.is_over
    )
