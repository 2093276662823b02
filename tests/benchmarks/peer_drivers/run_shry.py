"""Runs under SHRY's interpreter: the symmetry-distinct 2*v_S+2*Se_S of a supercell; X stands for a vacancy."""

import json
import sys
import time

from pymatgen.core import Lattice, Structure
from shry import const
from shry.core import Substitutor

const.DISABLE_PROGRESSBAR = True


class UncountedSubstitutor(Substitutor):
    """Without the count before the search, which takes minutes and serves as a limit only."""

    def count(self) -> int:
        return 0


def main() -> None:
    question = json.load(sys.stdin)
    n_s = question["species"].count("S")
    mixed = {"S": (n_s - 4) / n_s, "X": 2 / n_s, "Se": 2 / n_s}
    structure = Structure(
        Lattice(question["lattice"]),
        [mixed if symbol == "S" else {symbol: 1.0} for symbol in question["species"]],
        question["fractional_positions"],
        site_properties={"_atom_site_label": question["species"]},
    )
    started = time.perf_counter()
    substitutor = UncountedSubstitutor(structure)
    start_s = time.perf_counter() - started
    started = time.perf_counter()
    n_found = sum(1 for _ in substitutor.make_patterns())
    search_s = time.perf_counter() - started
    print(json.dumps({"n_found": n_found, "start_s": start_s, "search_s": search_s}))


main()
