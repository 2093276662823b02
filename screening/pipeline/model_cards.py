"""Model cards: what a model that leaves its database takes along, as JSON for programs and as text for people.

A model's weights know the names of its hosts only; the card has their lattices and sites, so that structures can be
matched without a database, and the level of theory, without which an energy means nothing. The rest says what a
reader must know before trusting a number: data and licence, how it was trained, errors on rows it never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from screening.defects.host import Host
from screening.dft.results import PROPERTIES, LevelOfTheory
from screening.errors import FileFormatError

FORMAT = "screening model card 1"
_METRIC_COLUMNS = (
    "data set", "property", "rows", "MAE (1e-3)", "RMSE (1e-3)", "within 0.020 (%)", "in 68 % interval (%)",
    "in 95 % interval (%)",
)  # fmt: skip
_THOUSANDTHS = 1e3  # errors are shown in meV and in thousandths of a Bohr magneton


@dataclass(frozen=True)
class DataShare:
    """Rows of one data set.

    Attributes:
        n_train: rows that the weights have learnt from.
        n_validation: rows that measured the errors of the card.
    """

    name: str
    n_train: int
    n_validation: int


@dataclass(frozen=True)
class CardMetric:
    """Errors of one property on rows of one data set that were never learnt, as `screening.learning.metrics` has them.

    Attributes:
        mae, rmse: eV or Bohr magneton.
        within: share of the rows whose error is at most 20 meV; None where it is not known, as the next two.
        coverage_68, coverage_95: share of the rows within the 68 and 95 % intervals.
    """

    dataset: str
    property: str
    n_rows: int
    mae: float
    rmse: float
    within: float | None = None
    coverage_68: float | None = None
    coverage_95: float | None = None


@dataclass(frozen=True)
class CardYardstick:
    """Error of a simple model that was fitted to the same rows and measured on the same ones.

    Attributes:
        mae: eV or Bohr magneton.
    """

    name: str
    dataset: str
    property: str
    mae: float


@dataclass(frozen=True, eq=False)
class ModelCard:
    """What goes with the weights.

    Attributes:
        hosts: the hosts the model has learnt from.
        properties: what it predicts.
        supercells: labels of the supercells that it has learnt from, by host.
        label_ranges: smallest and largest label of each property that it has learnt from, eV or Bohr magneton.
        source: where the data come from, with a DOI where there is one.
        licence: of the data.
        citations: what to cite with predictions.
        split: which rows were learnt, and which measured the errors.
        training: settings, seed, time, versions, commit: plain JSON values.
        limits: what the model cannot do, sentences.
    """

    name: str
    level: LevelOfTheory
    hosts: tuple[Host, ...]
    properties: tuple[str, ...]
    supercells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    data: tuple[DataShare, ...] = ()
    label_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    citations: tuple[str, ...] = ()
    split: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[CardMetric, ...] = ()
    yardsticks: tuple[CardYardstick, ...] = ()
    limits: tuple[str, ...] = ()


def card_to_json(card: ModelCard) -> dict[str, Any]:
    """A card in plain JSON types."""
    return {
        "format": FORMAT,
        **{name: getattr(card, name) for name in ("name", "source", "licence", "split")},
        "level": asdict(card.level),
        "hosts": [_host_to_json(host) for host in card.hosts],
        "properties": list(card.properties),
        "supercells": {host: list(labels) for host, labels in card.supercells.items()},
        "data": [asdict(share) for share in card.data],
        "label_ranges": {name: list(ends) for name, ends in card.label_ranges.items()},
        "citations": list(card.citations),
        "training": dict(card.training),
        "metrics": [asdict(metric) for metric in card.metrics],
        "yardsticks": [asdict(yardstick) for yardstick in card.yardsticks],
        "limits": list(card.limits),
    }


def card_from_json(found: Any) -> ModelCard:
    """The card of its JSON.

    Raises:
        FileFormatError: it is no card of this version.
    """
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        shown = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise FileFormatError(
            f"the card of the model is {shown!r}, this version of screening reads {FORMAT!r}; export the model again"
        )
    try:
        card = ModelCard(
            name=str(found["name"]),
            level=LevelOfTheory(**found["level"]),
            hosts=tuple(_host_from_json(host) for host in found["hosts"]),
            properties=tuple(map(str, found["properties"])),
            supercells={str(host): tuple(map(str, labels)) for host, labels in found.get("supercells", {}).items()},
            data=tuple(
                DataShare(str(share["name"]), int(share["n_train"]), int(share["n_validation"]))
                for share in found["data"]
            ),
            label_ranges={str(n): (float(low), float(high)) for n, (low, high) in found["label_ranges"].items()},
            source=str(found["source"]),
            licence=str(found["licence"]),
            citations=tuple(map(str, found["citations"])),
            split=str(found["split"]),
            training=dict(found["training"]),
            metrics=tuple(map(_metric_from_json, found["metrics"])),
            yardsticks=tuple(
                CardYardstick(str(y["name"]), str(y["dataset"]), str(y["property"]), float(y["mae"]))
                for y in found.get("yardsticks", ())
            ),
            limits=tuple(map(str, found["limits"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"the card of the model is damaged ({type(error).__name__}: {error}); export the model again"
        ) from error
    measured = [*(metric.property for metric in card.metrics), *(y.property for y in card.yardsticks)]
    named = {*card.properties, *card.label_ranges, *measured}
    if unknown := sorted(named - set(PROPERTIES)):
        raise FileFormatError(f"the card names the properties {', '.join(unknown)}; known are {', '.join(PROPERTIES)}")
    return card


def _metric_from_json(found: Mapping[str, Any]) -> CardMetric:
    shares = {
        name: None if found[name] is None else float(found[name]) for name in ("within", "coverage_68", "coverage_95")
    }
    return CardMetric(
        str(found["dataset"]), str(found["property"]), int(found["n_rows"]), float(found["mae"]), float(found["rmse"]),
        **shares,
    )  # fmt: skip


def _host_to_json(host: Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "lattice": host.lattice.tolist(),
        "species": list(host.species),
        "positions": host.positions.tolist(),
        "is_layer": host.is_layer,
        "source": host.source,
    }


def _host_from_json(found: Mapping[str, Any]) -> Host:
    species = tuple(map(str, found["species"]))
    lattice = np.array(found["lattice"], np.float64)
    positions = np.array(found["positions"], np.float64)
    if lattice.shape != (3, 3) or positions.shape != (len(species), 3):
        raise ValueError(f"host {found['name']} has a lattice {lattice.shape} and positions {positions.shape}")
    if not np.isfinite(lattice).all() or not np.isfinite(positions).all() or abs(np.linalg.det(lattice)) < 1e-3:
        raise ValueError(f"host {found['name']} has a flat cell, or numbers that are not finite")
    return Host(str(found["name"]), lattice, species, positions, bool(found["is_layer"]), str(found["source"]))


def card_text(card: ModelCard) -> str:
    """A card as Markdown; sections of which the card says nothing are left out."""

    def shown(host: Host) -> str:
        labels = ", ".join(card.supercells.get(host.name, ()))
        return f"{host.name} ({labels})" if labels else host.name

    shares = [[share.name, share.n_train, share.n_validation] for share in card.data]
    sections = {
        "Data": [
            card.source,
            f"Licence: {card.licence}." if card.licence else "",
            card.split,
            _table(["data set", "rows learnt", "rows that measured errors"], shares),
        ],
        "Errors on rows that were not learnt": [_metrics_text(card)],
        "Beside simple models": [
            "Mean absolute errors (1e-3) of models fitted to the same rows, one for each data set and property. "
            "The least of each row is bold.",
            _yardsticks_text(card),
        ]
        if card.yardsticks
        else [],
        "Limits": [_bullets(card.limits)],
        "Training": [_bullets([f"{name}: {_value(value)}" for name, value in card.training.items()])],
        "Cite": [_bullets(card.citations)],
    }
    paragraphs = [
        f"# Model {card.name}",
        f"Predicts {', '.join(card.properties)} of combinations of point defects in "
        f"{', '.join(map(shown, card.hosts))}, as {card.level.code} with {card.level.functional} gives them "
        f"(level of theory {card.level.name}). Energies in eV, magnetisation in Bohr magneton.",
    ]
    for title, section in sections.items():
        if filled := [paragraph for paragraph in section if paragraph]:
            paragraphs += [f"## {title}", *filled]
    return "\n\n".join(paragraphs) + "\n"


def _metrics_text(card: ModelCard) -> str:
    rows: list[list[object]] = []
    for metric in card.metrics:
        errors = [f"{_THOUSANDTHS * value:.1f}" for value in (metric.mae, metric.rmse)]
        shares = (metric.within, metric.coverage_68, metric.coverage_95)
        percent = ["" if share is None else f"{100 * share:.0f}" for share in shares]
        rows.append([metric.dataset, metric.property, metric.n_rows, *errors, *percent])
    return _table(_METRIC_COLUMNS, rows)


def _yardsticks_text(card: ModelCard) -> str:
    names = list(dict.fromkeys(yardstick.name for yardstick in card.yardsticks))
    errors = {(y.name, y.dataset, y.property): y.mae for y in card.yardsticks}
    own = {(metric.dataset, metric.property): metric.mae for metric in card.metrics}
    rows: list[list[object]] = []
    for dataset, name in dict.fromkeys((yardstick.dataset, yardstick.property) for yardstick in card.yardsticks):
        found = [own.get((dataset, name)), *(errors.get((yardstick, dataset, name)) for yardstick in names)]
        least = min(error for error in found if error is not None)
        texts = ["" if error is None else f"{_THOUSANDTHS * error:.1f}" for error in found]
        rows.append([dataset, name, *(f"**{t}**" if e == least else t for t, e in zip(texts, found, strict=True))])
    return _table(["data set", "property", "this model", *names], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines: list[Sequence[object]] = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(value) for value in line)} |" for line in lines)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
