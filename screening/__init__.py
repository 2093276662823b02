"""Screens combinations of point defects in 2D materials.

Units everywhere: eV, angstrom, Bohr magneton.
"""

__version__ = "0.1.0"
