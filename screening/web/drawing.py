"""Drawings of supercells as SVG: sites by species, from above or from the side, with the defects marked.

Works everywhere, without scripts; colours are classes of the style sheet, so that they are right in light and dark. A
vacancy is a dashed ring where an atom is missing, a substitution is an atom of another colour in a ring; both carry
their names.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell

View = Literal["top", "side"]

_AXES: dict[View, tuple[int, int, int]] = {"top": (0, 1, 2), "side": (0, 2, 1)}  # across, up, towards the eye
_BOND = 1.15  # of the shortest distance between sites
_MARGIN = 1.4  # angstrom
_PIXELS = 1000.0  # across
_N_COLOURS = 6


def supercell_svg(supercell: Supercell, configuration: Configuration | None = None, *, view: View = "top") -> Markup:
    """The unrelaxed sites of a supercell, those in front over those behind.

    Args:
        configuration: whose defects are marked; none if not given.
    """
    defects = dict(zip(configuration.sites, configuration.defect_types, strict=True)) if configuration else {}
    colours = species_colours(supercell, configuration)
    across, up, depth = _AXES[view]
    flat = supercell.positions[:, [across, up]]
    outline = _outline(supercell, view)
    low = np.vstack([flat, outline]).min(0) - _MARGIN
    size = np.vstack([flat, outline]).max(0) + _MARGIN - low
    scale = _PIXELS / size[0]

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = (points - low) * scale
        return np.stack([moved[..., 0], size[1] * scale - moved[..., 1]], axis=-1)

    radius = 0.34 * _nearest(supercell) * scale
    spots = place(flat)
    body = [_cell(place(outline)), *_bonds(supercell, spots, set(defects))]
    for site in np.argsort(supercell.positions[:, depth] * (1 if view == "top" else -1), kind="stable"):
        if site not in defects:
            body.append(_atom(spots[site], radius, colours[supercell.species[site]]))
    for site, height in _label_heights({site: float(spots[site][0]) for site in defects}, 4.5 * radius).items():
        body.append(_defect(spots[site], radius, DefectType.from_code(defects[site]), colours, height=height))
    title = f"{supercell.host.name} {supercell.label} from the {view}"
    said = configuration.composition if configuration and configuration.n_defects else "no defects"
    return Markup(  # noqa: S704  # every text is escaped, the rest are numbers
        f'<svg class="supercell" role="img" viewBox="0 0 {_PIXELS:.0f} {size[1] * scale:.0f}" '
        f'aria-label="{escape(title)}, {escape(said)}"><title>{escape(title)}: {escape(said)}</title>'
        f"{''.join(body)}</svg>"
    )


def species_colours(supercell: Supercell, configuration: Configuration | None = None) -> dict[str, int]:
    """Number of the colour of each species that occurs, those of the host first."""
    added = [DefectType.from_code(code).added for code in configuration.defect_types] if configuration else []
    names = dict.fromkeys([*supercell.host.species, *(name for name in added if name)])
    return {name: n % _N_COLOURS for n, name in enumerate(names)}


def _nearest(supercell: Supercell) -> float:
    """Shortest distance between two sites, angstrom; of a supercell with one site its shortest side."""
    distances = supercell.pair_distances[0]
    apart = distances[distances > 0]
    return float(apart.min()) if len(apart) else float(np.linalg.norm(supercell.lattice, axis=1).min())


def _outline(supercell: Supercell, view: View) -> NDArray[np.float64]:
    """Corners of the cell, as it is seen."""
    a, b, c = supercell.lattice
    if view == "top":
        return np.array([0 * a, a, a + b, b])[:, :2]
    heights = supercell.positions[:, 2]
    low, high = (heights.min() - 1.0, heights.max() + 1.0) if supercell.host.is_layer else (0.0, c[2])
    left, right = min(0.0, b[0]), a[0] + max(0.0, b[0])
    return np.array([[left, low], [right, low], [right, high], [left, high]])


def _cell(corners: NDArray[np.float64]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polygon class="cell" points="{points}"/>'


def _bonds(supercell: Supercell, spots: NDArray[np.float64], without: set[int]) -> list[str]:
    """Lines between neighbours, but for those across the border of the cell."""
    longest = _BOND * _nearest(supercell)
    plain = np.linalg.norm(supercell.positions[:, None] - supercell.positions[None], axis=-1)
    pairs = np.argwhere(np.triu((plain <= longest) & (plain > 0)))
    return [
        f'<line class="bond" x1="{spots[i][0]:.1f}" y1="{spots[i][1]:.1f}" x2="{spots[j][0]:.1f}" '
        f'y2="{spots[j][1]:.1f}"/>'
        for i, j in pairs
        if not {int(i), int(j)} & without
    ]


def _atom(spot: NDArray[np.float64], radius: float, colour: int) -> str:
    return f'<circle class="atom species-{colour}" cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="{radius:.1f}"/>'


def _label_heights(across: dict[int, float], width: float) -> dict[int, int]:
    """On which line above its defect each label stands, so that neighbours do not cover each other."""
    ends: list[float] = []
    heights = {}
    for site, x in sorted(across.items(), key=lambda place: place[1]):
        height = next((line for line, end in enumerate(ends) if x - end >= width), len(ends))
        ends[height : height + 1] = [x]
        heights[site] = height
    return heights


def _defect(
    spot: NDArray[np.float64], radius: float, defect_type: DefectType, colours: dict[str, int], *, height: int
) -> str:
    x, y = spot
    size = max(1.2 * radius, 16)
    kind = "vacancy" if defect_type.added is None else "substitution"
    inside = "" if defect_type.added is None else _atom(spot, radius, colours[defect_type.added])
    return (
        f'<g class="defect {kind}"><title>{escape(defect_type.name)}</title>{inside}'
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{1.25 * radius:.1f}"/>'
        f'<text x="{x:.1f}" y="{y - 1.5 * radius - height * size:.1f}" font-size="{size:.0f}">'
        f"{escape(defect_type.name)}</text></g>"
    )
