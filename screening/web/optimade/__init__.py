"""OPTIMADE: structures for the materials world, in its own query language (specification 1.2, optimade.org)."""
