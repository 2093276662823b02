"""Screens combinations of point defects in 2D materials.

Units everywhere: eV, angstrom, Bohr magneton. `screening.Client` speaks to a server over REST.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from screening.client import Client

__all__ = ["Client", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Client`, imported when it is asked for: the commands start without it."""
    if name == "Client":
        from screening.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
