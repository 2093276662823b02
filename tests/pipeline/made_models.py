"""A small model in a file, trained in a second on made rows."""

from __future__ import annotations

from functools import cache

from screening.dft.results import LevelOfTheory
from screening.learning.artifacts import ensemble_to_bytes
from screening.learning.settings import TrainingSettings
from screening.learning.training import train_ensemble
from screening.pipeline.model_cards import CardMetric, DataShare, ModelCard
from screening.pipeline.pretrained import ModelFile, unpack_model, with_card
from tests.learning.synthetic import labelled_rows

LEVEL = LevelOfTheory("formula", "none", "none", {"decay": 3.0})


@cache
def small_model() -> ModelFile:
    """A model of 4x4 MoS2 that has seen v_S, Se_S and v_Mo, up to three of them."""
    rows = labelled_rows()
    settings = TrainingSettings(n_members=3, width=16, epochs=2, device="cpu")
    trained = train_ensemble(rows, settings, seed=0, on_progress=lambda progress, checkpoint: None)
    card = ModelCard(
        name="small",
        level=LEVEL,
        hosts=(rows.supercells[0].host,),
        properties=rows.properties,
        supercells={"MoS2": ("4x4",)},
        data=(DataShare("made/MoS2", 192, 48),),
        label_ranges=dict.fromkeys(rows.properties, (-1.0, 12.5)),
        source="made here",
        licence="none",
        citations=("nobody et al.",),
        split="the last fifth",
        training={"seed": 0, "settings": {"epochs": 2}, "cpu_time_s": 1.25, "commit": None},
        metrics=(CardMetric("made/MoS2", "formation_energy_per_site", 48, 0.0125, 0.02, 0.83, 0.7, 0.94),),
        limits=("knows three defect types",),
    )
    return unpack_model(with_card(ensemble_to_bytes(trained), card), "small")
