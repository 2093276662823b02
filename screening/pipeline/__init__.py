"""The stages of the data flow: the only package that knows both the science and the database.

Each module writes the rows of its stage: `hosts` (hosts, supercells, configurations), `references` (levels of
theory, what formation energies are derived from), `results` with `result_rows`, `result_intake` and `watched_folders`,
and `imports` (calculations, results), `searches` and `scanning` (search spaces, chunks, candidates, predictions),
`models` and `retraining` (trained models), `designs` with `query_context` and `potentials` (answers of design
queries), `rankings` and `ranking_changes` (rankings), `rounds` with `batches` and `round_files` (rounds, calculations),
`loops` with `loop_stages` (all of it again and again), `provenance` and `retraction` (where a number comes from, and
taking it back). Functions take a session and leave the transaction to their caller; the `..._unit` functions of the
workers, `advance` and the intake of files open their own and say so.
"""
