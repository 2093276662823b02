"""Hosts known by name: the materials of the 2DMD data set and V2O5, a further host of its authors.

Lattice constants and positions are those that 2DMD was calculated with: Huang et al., npj 2D Mater. Appl. 7, 6
(2023), doi 10.1038/s41699-023-00369-1 (unit cells of the release; h-BN there is a monolayer of Materials
Project mp-984). The order of the sites is that of the unit cells of the release. Heights are given here from
the layer's middle plane, because the release gives one layer in cells of several heights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from screening.defects.host import Host
from screening.errors import UnknownNameError

CELL_HEIGHT = 20.0  # angstrom, that of the high-density subsets of 2DMD
_SOURCE = "2DMD, doi 10.1038/s41699-023-00369-1"
_ONE_THIRD, _TWO_THIRDS = 1.0 / 3.0, 2.0 / 3.0


@dataclass(frozen=True)
class _Layer:
    """A layer as the literature gives it.

    Attributes:
        a, b: lengths of the in-plane lattice vectors, angstrom.
        gamma: the angle between them, degrees.
        sites: species, two fractional in-plane coordinates, height above the middle plane in angstrom.
        aliases: other names that are understood.
    """

    a: float
    b: float
    gamma: float
    sites: tuple[tuple[str, float, float, float], ...]
    aliases: tuple[str, ...] = ()


def _hexagonal(a: float, sites: tuple[tuple[str, float, float, float], ...], *aliases: str) -> _Layer:
    return _Layer(a, a, 120.0, sites, aliases)


_LAYERS = {
    "MoS2": _hexagonal(
        3.1903157,
        (
            ("Mo", _ONE_THIRD, _TWO_THIRDS, 0.0),
            ("S", _TWO_THIRDS, _ONE_THIRD, -1.564884),
            ("S", _TWO_THIRDS, _ONE_THIRD, 1.564884),
        ),
    ),
    "WSe2": _hexagonal(
        3.32706951,
        (
            ("W", _ONE_THIRD, _TWO_THIRDS, 0.0),
            ("Se", _TWO_THIRDS, _ONE_THIRD, 1.681228),
            ("Se", _TWO_THIRDS, _ONE_THIRD, -1.681228),
        ),
    ),
    "h-BN": _hexagonal(
        2.51242846,
        (("B", _ONE_THIRD, _TWO_THIRDS, 0.0), ("N", _TWO_THIRDS, _ONE_THIRD, 0.0)),
        "hBN",
        "BN",
    ),
    "GaSe": _hexagonal(
        3.81906671,
        (
            ("Ga", _TWO_THIRDS, _ONE_THIRD, -1.235445),
            ("Ga", _TWO_THIRDS, _ONE_THIRD, 1.235445),
            ("Se", _ONE_THIRD, _TWO_THIRDS, 2.408708),
            ("Se", _ONE_THIRD, _TWO_THIRDS, -2.408708),
        ),
    ),
    "InSe": _hexagonal(
        4.09647352,
        (
            ("In", _ONE_THIRD, _TWO_THIRDS, 1.417031),
            ("In", _ONE_THIRD, _TWO_THIRDS, -1.417031),
            ("Se", _TWO_THIRDS, _ONE_THIRD, 2.684545),
            ("Se", _TWO_THIRDS, _ONE_THIRD, -2.684545),
        ),
    ),
    "BP": _Layer(
        3.299918,
        4.600926,
        90.0,
        (
            ("P", 0.0, 0.588557, -1.053121),
            ("P", 0.0, 0.411443, 1.053121),
            ("P", 0.5, 0.088557, 1.053121),
            ("P", 0.5, 0.911443, -1.053121),
        ),
        ("P", "phosphorene"),
    ),
    "V2O5": _Layer(
        3.618658,
        11.551508,
        90.0,
        (
            ("V", 0.0, 0.649496, 0.536016),
            ("V", 0.5, 0.850504, -0.536016),
            ("V", 0.5, 0.149496, -0.536016),
            ("V", 0.0, 0.350504, 0.536016),
            ("O", 0.5, 0.681836, 0.056210),
            ("O", 0.0, 0.818164, -0.056210),
            ("O", 0.0, 0.181836, -0.056210),
            ("O", 0.5, 0.318164, 0.056210),
            ("O", 0.0, 0.354976, 2.145028),
            ("O", 0.5, 0.145024, -2.145028),
            ("O", 0.5, 0.854976, -2.145028),
            ("O", 0.5, 0.0, -0.006092),
            ("O", 0.0, 0.5, 0.006092),
            ("O", 0.0, 0.645024, 2.145028),
        ),
    ),
}


def host_names() -> tuple[str, ...]:
    """Names of the hosts that `catalogue_host` gives."""
    return tuple(_LAYERS)


def catalogue_host(name: str) -> Host:
    """A host by its name or an alias (hBN and BN for h-BN, P for BP), in a cell 20 angstrom high.

    Raises:
        UnknownNameError: the catalogue has no such host.
    """
    for known, layer in _LAYERS.items():
        if name in (known, *layer.aliases):
            return _host(known, layer)
    raise UnknownNameError(
        f"the catalogue has no host {name!r}; it has {', '.join(_LAYERS)}: name one of these, or give a file of its "
        "unit cell"
    )


def _host(name: str, layer: _Layer) -> Host:
    gamma = np.deg2rad(layer.gamma)
    lattice = np.array(
        [
            [layer.a, 0.0, 0.0],
            [layer.b * np.cos(gamma), layer.b * np.sin(gamma), 0.0],
            [0.0, 0.0, CELL_HEIGHT],
        ]
    )
    species = tuple(symbol for symbol, *_ in layer.sites)
    positions = np.array([[x, y, 0.5 + height / CELL_HEIGHT] for _, x, y, height in layer.sites])
    return Host.from_cell(name, lattice, species, positions, source=_SOURCE)
