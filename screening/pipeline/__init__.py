"""The stages of the data flow: the only package that knows both the science and the database.

Each module writes the rows of its stage: `hosts` (hosts, supercells, configurations), `imports` (levels of
theory, chemical potentials, calculations, results), `searches` (search spaces, chunks, candidates,
predictions), `models` (trained models), `rounds` (design queries, rankings, rounds, calculations). Functions
take a session and leave the transaction to their caller; the `..._next` functions of the workers stream units
of work, open their own transactions and say so.
"""
