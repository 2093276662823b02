"""Calculations in and out: 2DMD, VASP, xTB, structure files. No torch, no SQL."""
