"""Runs under MEGNetSparse's interpreter: its trainer, with the published settings, on rows of one supercell.

A JSON line for the graphs, then one for each epoch as it ends: CPU seconds of the epochs so far, without the
validation, and the error on the validation rows. It stops after TRAINING_PEER_CPU_S CPU seconds.

The package converts a structure of 192 sites in tens of milliseconds. Here its annotations of the pristine supercell's
sites are made once, and the defects of a row are picked out of them, which gives the same structures: some rows go the
package's own way too, and must agree.
"""

import json
import os
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from joblib import parallel_config
from MEGNetSparse.dense2sparse import add_state, add_unit_cell_properties, add_was, convert_to_sparse_representation
from MEGNetSparse.eos import EOS
from MEGNetSparse.trainer import MEGNetTrainer
from pymatgen.core import DummySpecies, Lattice, PeriodicSite, Structure

LIMIT_S = float(os.environ.get("TRAINING_PEER_CPU_S", "450"))
EPOCHS = 400
N_COMPARED = 5  # rows that go the package's own way too
PRECISION = 3  # decimals of the coordinates by which the package knows sites

# of the trial that the paper's figures for all subsets come from
CONFIG = {
    "model": {
        "train_batch_size": 64,
        "test_batch_size": 128,
        "add_z_bond_coord": True,
        "add_eos_features": True,
        "atom_features": "werespecies",
        "state_input_shape": 2,
        "cutoff": 12,
        "edge_embed_size": 10,
        "embedding_size": 64,
        "nblocks": 3,
        "vertex_aggregation": "max",
        "global_aggregation": "max",
    },
    "optim": {
        "scheduler": "ReduceLROnPlateau",
        "factor": 0.9,
        "patience": 10,
        "threshold": 5e-4,
        "lr_initial": 1e-3,
        "min_lr": 1e-5,
    },
}

Row = list[tuple[int, str | None]]
"""Site and species of each defect; a vacancy has none."""


class PlateauWithoutVerbose(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Of the arguments that the package passes, torch no longer has `verbose`."""

    def __init__(self, *args: Any, verbose: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def structure_of(cell: dict[str, Any]) -> Structure:
    return Structure(Lattice(cell["lattice"]), cell["species"], cell["fractional_positions"])


def place_of(site: PeriodicSite) -> tuple[float, ...]:
    return tuple(np.round(site.frac_coords, PRECISION))


def annotated_sites(pristine: Structure, unit_cell: Structure, repeats: list[int]) -> list[PeriodicSite]:
    """Sites in the order of the pristine supercell, as the package annotates them."""
    annotated = add_unit_cell_properties(add_was(pristine, unit_cell, repeats), unit_cell, repeats)
    of_place = {place_of(site): site for site in annotated}
    return [of_place[place_of(site)] for site in pristine]


def sparse_structure(row: Row, sites: list[PeriodicSite], unit_cell: Structure) -> Structure:
    defects = [
        PeriodicSite(
            DummySpecies() if symbol is None else symbol, sites[number].frac_coords, sites[number].lattice,
            properties=dict(sites[number].properties),
        )
        for number, symbol in row
    ]  # fmt: skip
    return add_state(Structure.from_sites(defects), unit_cell)


def converted(row: Row, pristine: Structure, unit_cell: Structure, repeats: list[int]) -> Structure:
    """The package's own way from a structure."""
    structure = pristine.copy()
    for number, symbol in row:
        if symbol is not None:
            structure.replace(number, symbol)
    structure.remove_sites([number for number, symbol in row if symbol is None])
    return convert_to_sparse_representation(structure, unit_cell, repeats, copy_unit_cell_properties=True)


def described(structure: Structure) -> list[tuple[Any, ...]]:
    """What a graph is made of, in an order of its own."""
    sites = [(place_of(s), str(s.specie), s.properties["was"], list(s.properties["shells"])) for s in structure]
    return [*sorted(sites), tuple(structure.state[0])]


def prepared_trainer(question: dict[str, Any]) -> tuple[MEGNetTrainer, dict[str, float]]:
    """A trainer with its graphs, and what these took."""
    pristine, repeats = structure_of(question["cell"]), question["repeats"]
    unit_cell = EOS().get_augmented_struct(structure_of(question["unit_cell"]))  # with the radii of its shells
    sites, rows = annotated_sites(pristine, unit_cell, repeats), question["rows"]
    structures = [sparse_structure(row, sites, unit_cell) for row in rows]
    compared = range(0, len(rows), len(rows) // N_COMPARED)
    started = time.process_time()
    own = [converted(rows[i], pristine, unit_cell, repeats) for i in compared]
    structure_s = (time.process_time() - started) / len(own)
    for i, structure in zip(compared, own, strict=True):
        assert described(structure) == described(structures[i]), f"row {i} is not as the package converts it"
    is_validation = np.array(question["is_validation"])
    trained, tested = np.flatnonzero(~is_validation), np.flatnonzero(is_validation)
    trainer = MEGNetTrainer(CONFIG, "cpu")
    started = time.process_time()
    with parallel_config(backend="sequential"):  # in this process, where its CPU time is seen
        trainer.prepare_data(
            [structures[i] for i in trained], [question["labels"][i] for i in trained],
            [structures[i] for i in tested], [question["labels"][i] for i in tested], question["property"],
        )  # fmt: skip
    times = {"structure_to_sparse_s": structure_s, "graph_s": (time.process_time() - started) / len(rows)}
    return trainer, {**times, "n_train": len(trained), "n_validation": len(tested)}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.optim.lr_scheduler.ReduceLROnPlateau = PlateauWithoutVerbose
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # the trainer prints as it goes
        trainer, facts = prepared_trainer(json.load(sys.stdin))
        facts["n_parameters"] = sum(p.numel() for p in trainer.model.parameters())
        print(json.dumps(facts), file=answers, flush=True)
        spent_s = 0.0
        for epoch in range(1, EPOCHS + 1):
            started = time.process_time()
            trainer.train_one_epoch()
            spent_s += time.process_time() - started
            mae = float(trainer.evaluate_on_test())
            print(json.dumps({"epoch": epoch, "cpu_s": spent_s, "mae": mae}), file=answers, flush=True)
            if spent_s >= LIMIT_S:
                break


main()
