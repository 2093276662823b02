"""Runs under bsym's interpreter: the symmetry-distinct v_Mo+v_S+Se_S of a supercell.

bsym substitutes one species after the other. Stand-ins that occur nowhere else mark the defects: He for a vacancy.
"""

import contextlib
import json
import sys
import time
import warnings

from bsym.interface.pymatgen import configuration_space_from_structure, unique_structure_substitutions
from pymatgen.core import Lattice, Structure

warnings.filterwarnings("ignore", message="No Pauling electronegativity")


def structures_with_defects(host: Structure) -> list[Structure]:
    """What a user of bsym calls; structures come with it."""
    n_mo, n_s = (len(host.indices_from_symbol(symbol)) for symbol in ("Mo", "S"))
    return [
        structure
        for parent in unique_structure_substitutions(host, "Mo", {"Mo": n_mo - 1, "He": 1})
        for structure in unique_structure_substitutions(parent, "S", {"S": n_s - 2, "He": 1, "Se": 1})
    ]


def timed_search(structure: Structure, symbol: str, distribution: dict[int, int]) -> tuple[list[list[int]], float]:
    """The distinct distributions of numbers on the sites of a species, and the seconds of this search alone."""
    space = configuration_space_from_structure(structure, subset=list(structure.indices_from_symbol(symbol)))
    started = time.perf_counter()
    found = space.unique_configurations(distribution)
    return [configuration.tolist() for configuration in found], time.perf_counter() - started


def search(host: Structure) -> tuple[int, float]:
    """The same without structures: number found, and the seconds in which bsym searched."""
    mo, n_s = host.indices_from_symbol("Mo"), len(host.indices_from_symbol("S"))
    parents, search_s = timed_search(host, "Mo", {0: len(mo) - 1, 1: 1})
    n_found = 0
    for parent in parents:
        structure = host.copy()
        structure[mo[parent.index(1)]] = "He"
        found, seconds = timed_search(structure, "S", {0: n_s - 2, 1: 1, 2: 1})
        n_found += len(found)
        search_s += seconds
    return n_found, search_s


def main() -> None:
    question = json.load(sys.stdin)
    host = Structure(Lattice(question["lattice"]), question["species"], question["fractional_positions"])
    with contextlib.redirect_stdout(sys.stderr):
        started = time.perf_counter()
        n_structures = len(structures_with_defects(host))
        whole_s = time.perf_counter() - started
        n_searched, search_s = search(host)
    print(json.dumps({"n_structures": n_structures, "whole_s": whole_s, "n_found": n_searched, "search_s": search_s}))


main()
