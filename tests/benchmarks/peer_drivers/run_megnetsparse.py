"""Runs under MEGNetSparse's interpreter: structures to sparse graphs, and its network on ready graphs, forward only.

The sizes are those of the paper's network: 719,536 parameters. The trainer is passed by: it calls torch in ways that
torch has given up.
"""

import json
import sys
import time

import numpy as np
import torch
from MEGNetSparse.dense2sparse import convert_to_sparse_representation
from MEGNetSparse.model import MEGNet
from MEGNetSparse.struct2graph import AtomFeaturesExtractor, FlattenGaussianDistanceConverter, SimpleCrystalConverter
from pymatgen.core import Lattice, Structure
from torch_geometric.loader import DataLoader

CUTOFF = 20.0  # angstrom
N_GAUSSIANS = 10
BATCH = 256
N_GRAPHS = 4096


def main() -> None:
    question = json.load(sys.stdin)
    torch.set_num_threads(1)
    lattice = Lattice(question["lattice"])
    structures = [Structure(lattice, species, positions) for species, positions in question["structures"]]
    cell = question["unit_cell"]
    unit_cell = Structure(Lattice(cell["lattice"]), cell["species"], cell["fractional_positions"])
    started = time.perf_counter()
    sparse = [convert_to_sparse_representation(s, unit_cell, question["repeats"]) for s in structures]
    sparse_s = time.perf_counter() - started

    edges = FlattenGaussianDistanceConverter(np.linspace(0, CUTOFF, N_GAUSSIANS))
    atoms = AtomFeaturesExtractor("werespecies")
    converter = SimpleCrystalConverter(
        bond_converter=edges, atom_converter=atoms, cutoff=CUTOFF, add_z_bond_coord=True
    )  # fmt: skip
    started = time.perf_counter()
    graphs = [converter.convert(structure) for structure in sparse]
    graph_s = time.perf_counter() - started

    network = MEGNet(edges.get_shape(), atoms.get_shape(), 2, embedding_size=64, n_blocks=3).eval()
    many = [graphs[i % len(graphs)] for i in range(N_GRAPHS)]
    batches = list(DataLoader(many, batch_size=BATCH))
    with torch.inference_mode():
        for batch in (batches[0], *batches):  # the first one warms up
            if batch is batches[0]:
                started = time.perf_counter()
            network(batch.x, batch.edge_index, batch.edge_attr, batch.state, batch.batch, batch.bond_batch)
    network_s = time.perf_counter() - started
    answer = {
        "n_structures": len(structures),
        "n_nodes": sorted({graph.num_nodes for graph in graphs}),
        "n_parameters": sum(p.numel() for p in network.parameters()),
        "sparse_s": sparse_s,
        "graph_s": graph_s,
        "n_graphs": N_GRAPHS,
        "network_s": network_s,
    }
    print(json.dumps(answer))


main()
