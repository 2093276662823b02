"""Crystallography of point defects: hosts, symmetry, enumeration, matching. No torch, no SQL."""
