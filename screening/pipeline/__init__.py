"""The stages of the data flow: the only package that knows both the science and the database.

Each module writes the rows of its stage: `hosts` (hosts, supercells, configurations), `references` (levels of
theory, what formation energies are derived from), `results` with `result_rows` and `result_intake`, and `imports`
(calculations, results), `searches` (search spaces, chunks, candidates, predictions), `models` (trained models),
`designs` (rankings), `rounds` (rounds, calculations). Functions take a session and leave the transaction to their
caller; the `..._unit` functions of the workers and the intake of files open their own and say so.
"""
