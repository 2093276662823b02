"""Sparse-defect graph networks: the only package that imports torch. No SQL."""
