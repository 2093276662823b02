"""The data set that the package ships, and the command that makes it.

4x4 MoS2 at GFN1-xTB, single points at ideal sites: every symmetry-distinct configuration of one and two of the
defects v_S, Se_S, v_Mo and W_Mo, and a uniform random sample of those with three. The rest of those with three is
left to be predicted, proposed and calculated.

The file is gzip'ed text: one line ``# `` with a JSON card (host, supercell, level of theory, pristine energy,
chemical potentials, seed, sizes, version of tblite, licence, command), then CSV. Sites and defect types are joined by
blanks; a calculation that failed has its reason in ``error`` and no numbers. Energies have six decimals, so that the
bytes are the same wherever the numbers agree to that.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType, parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_space
from screening.defects.host import Supercell
from screening.defects.symmetry import find_symmetry
from screening.dft import xtb
from screening.dft.results import CalculationResult, LevelOfTheory, formation_energy
from screening.errors import CalculationError, FileFormatError, InputError

NAME = "built-in/MoS2_4x4_GFN1"
DEFECT_TYPES = "v_S,Se_S,v_Mo,W_Mo"
SAMPLE = 700  # configurations of three defects
VALIDATION_SHARE = 0.15
_FILE = "data/mos2_4x4_gfn1.csv.gz"
_HOST, _SUPERCELL = "MoS2", "4x4"
_FORMAT = 1
_DECIMALS = 6
_LEVELS = ("homo_lumo_gap_min", "homo_lumo_gap_majority", "homo_lumo_gap_minority", "homo", "lumo")
_NUMBERS = ("energy", "formation_energy", *_LEVELS)
_COLUMNS = ("configuration", "sites", "defect_types", "multiplicity", "split", *_NUMBERS, "error")


@dataclass(frozen=True)
class Card:
    """What a data set is and how it was made.

    Attributes:
        level: name, code, functional and settings of the level of theory.
        pristine: energy and properties of the pristine supercell, eV.
        chemical_potentials: (eV per atom, reference phase) by element.
        sample: number of configurations of three defects, chosen with `seed`.
    """

    name: str
    host: str
    supercell: str
    defect_types: str
    level: dict[str, Any]
    pristine: dict[str, float]
    chemical_potentials: dict[str, tuple[float, str]]
    sample: int
    seed: int
    tblite: str
    licence: str
    command: str
    format: int = _FORMAT

    @property
    def level_of_theory(self) -> LevelOfTheory:
        """The level of theory of every number in the data set."""
        return LevelOfTheory(**self.level)


@dataclass(frozen=True)
class Row:
    """One calculation; `error` is its reason where it failed, and then it has no numbers.

    Attributes:
        numbers: total energy of the supercell and properties, eV, by the names of the columns.
    """

    configuration: Configuration
    multiplicity: int
    split: str
    numbers: Mapping[str, float]
    error: str | None

    @property
    def name(self) -> str:
        """`v_Mo@0 v_S@16`."""
        pairs = zip(self.configuration.sites, self.configuration.defect_types, strict=True)
        return " ".join(f"{DefectType.from_code(code).name}@{site}" for site, code in pairs)

    @property
    def result(self) -> CalculationResult:
        """The result of a calculation that did not fail."""
        assert self.error is None, self.error
        return _result(self.configuration, self.numbers)


@dataclass(frozen=True)
class BuiltinDataset:
    """A data set as it is read from its file.

    Attributes:
        sha256: of the file.
        size: of the file, bytes.
    """

    card: Card
    rows: tuple[Row, ...]
    sha256: str
    size: int

    @property
    def pristine(self) -> CalculationResult:
        """The result of the pristine supercell."""
        return _result(Configuration((), ()), self.card.pristine)

    @property
    def supercell(self) -> Supercell:
        """The supercell that all sites are numbered in."""
        return Supercell.parse(catalogue_host(self.card.host), self.card.supercell)


@dataclass(frozen=True)
class BuildReport:
    """What a build did: rows in the file, calculations it took from the checkpoint, failures, bytes."""

    rows: int
    from_checkpoint: int
    failed: int
    size: int


def shipped_path() -> Path:
    """The data set's file in the installed package."""
    return Path(str(files("screening") / _FILE))


def read(path: Path | None = None) -> BuiltinDataset:
    """Read a data set, by default the one that the package ships.

    Raises:
        FileFormatError: the file is absent, cut short, or not a data set of this format.
    """
    path = path or shipped_path()
    try:
        content = path.read_bytes()
        first, _, table = gzip.decompress(content).decode().partition("\n")
        card = _read_card(first)
        rows = tuple(_read_row(row) for row in csv.DictReader(io.StringIO(table)))
    except (OSError, EOFError, ValueError, KeyError, TypeError, InputError) as error:
        raise FileFormatError(
            f"{path} is no data set of `screening dataset build` ({type(error).__name__}: {error}); build it again, or "
            "install the package again if it is the shipped one"
        ) from error
    return BuiltinDataset(card, rows, hashlib.sha256(content).hexdigest(), len(content))


def build(
    path: Path, *, sample: int = SAMPLE, seed: int = 0, on_progress: Callable[[int, int], None] | None = None
) -> BuildReport:
    """Calculate a data set and write it; 2.5 s a row on one core.

    Every finished calculation goes into ``PATH.checkpoint`` at once; a build that is repeated takes them from
    there, whatever its sample and seed, and removes the checkpoint once the data set is written.

    Args:
        sample: how many configurations of three defects, chosen uniformly without repetition.
        on_progress: called with calculations done and in all.

    Raises:
        InputError: there are fewer configurations than `sample`, or the checkpoint is of other settings.
        CalculationError: the pristine supercell or a reference cannot be calculated.
    """
    supercell = Supercell.parse(catalogue_host(_HOST), _SUPERCELL)
    chosen = list(_choose(supercell, sample, seed))
    checkpoint = path.with_name(path.name + ".checkpoint")
    results = _read_checkpoint(checkpoint)
    wanted = [Configuration((), ()), *(configuration for configuration, _ in chosen)]
    n_known = sum(configuration in results for configuration in wanted)
    with checkpoint.open("a", encoding="utf-8") as log:
        for done, configuration in enumerate(wanted):
            if on_progress is not None:
                on_progress(done, len(wanted))
            if configuration not in results:
                results[configuration] = _calculate(supercell, configuration)
                log.write(_checkpoint_line(configuration, results[configuration]) + "\n")
                log.flush()
    if on_progress is not None:
        on_progress(len(wanted), len(wanted))
    card = _make_card(results[wanted[0]], sample, seed)
    rows = [_make_row(card, results[configuration], configuration, n) for configuration, n in chosen]
    _write(path, card, rows)
    checkpoint.unlink()
    return BuildReport(len(rows), n_known, sum(row.error is not None for row in rows), path.stat().st_size)


def _result(configuration: Configuration, numbers: Mapping[str, float]) -> CalculationResult:
    return CalculationResult(configuration, numbers["energy"], {name: numbers[name] for name in _LEVELS})


def _choose(supercell: Supercell, sample: int, seed: int) -> Iterator[tuple[Configuration, int]]:
    """Configurations with their multiplicities, in the order of the enumeration."""
    space = SearchSpace(supercell, parse_defect_types(DEFECT_TYPES), 3)
    found = [
        (Configuration(tuple(sites), tuple(codes)), multiplicity)
        for block in enumerate_space(space, find_symmetry(supercell))
        for sites, codes, multiplicity in zip(
            block.sites.tolist(), block.defect_types.tolist(), block.multiplicity.tolist(), strict=True
        )
    ]
    small = [pair for pair in found if pair[0].n_defects < 3]
    large = found[len(small) :]
    if not 0 <= sample <= len(large):
        raise InputError(f"a sample of {sample} is asked for; there are {len(large)} configurations of three defects")
    yield from small
    for i in sorted(np.random.default_rng(seed).permutation(len(large))[:sample]):
        yield large[i]


def _calculate(supercell: Supercell, configuration: Configuration) -> dict[str, Any]:
    """Energy and properties, or the reason why there are none."""
    try:
        result = xtb.calculate(supercell, configuration)
    except CalculationError as error:
        return {"error": str(error)}
    return {"energy": result.energy, **result.properties}


def _read_checkpoint(path: Path) -> dict[Configuration, dict[str, Any]]:
    """Outcomes of earlier calculations by configuration; a last line that was cut short is dropped."""
    head = json.dumps(_checkpoint_head())
    if not path.exists():
        path.write_text(head + "\n", encoding="utf-8")
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if not lines or lines[0].strip() != head:
        raise InputError(f"{path} holds calculations with other settings than {head}; remove it to begin again")
    if not lines[-1].endswith("\n"):
        lines.pop()
        path.write_text("".join(lines), encoding="utf-8")
    outcomes = {}
    for line in lines[1:]:
        outcome = json.loads(line)
        outcomes[Configuration(tuple(outcome.pop("sites")), tuple(outcome.pop("defect_types")))] = outcome
    return outcomes


def _checkpoint_head() -> dict[str, str]:
    level = xtb.level_of_theory()
    return {"host": _HOST, "supercell": _SUPERCELL, "level": level.digest, "tblite": version("tblite")}


def _checkpoint_line(configuration: Configuration, outcome: Mapping[str, Any]) -> str:
    return json.dumps({"sites": configuration.sites, "defect_types": configuration.defect_types, **outcome})


def _make_card(pristine: Mapping[str, Any], sample: int, seed: int) -> Card:
    if "error" in pristine:
        raise CalculationError(f"the pristine supercell cannot be calculated: {pristine['error']}")
    level = xtb.level_of_theory()
    types = parse_defect_types(DEFECT_TYPES)
    elements = sorted({symbol for t in types for symbol in (t.removed, t.added) if symbol is not None})
    potentials = {element: xtb.reference(element) for element in elements}
    return Card(
        name=NAME,
        host=_HOST,
        supercell=_SUPERCELL,
        defect_types=",".join(t.name for t in types),
        level={"name": level.name, "code": level.code, "functional": level.functional, "settings": level.settings},
        pristine={name: round(value, _DECIMALS) for name, value in pristine.items()},
        chemical_potentials={e: (round(energy, _DECIMALS), source) for e, (energy, source) in potentials.items()},
        sample=sample,
        seed=seed,
        tblite=version("tblite"),
        licence="MIT",
        command=f"screening dataset build OUT --sample {sample} --seed {seed}",
    )


def _make_row(card: Card, outcome: Mapping[str, Any], configuration: Configuration, multiplicity: int) -> Row:
    split = _split(configuration, card.seed)
    if "error" in outcome:
        return Row(configuration, multiplicity, split, {}, outcome["error"])
    numbers = {name: round(value, _DECIMALS) for name, value in outcome.items()}
    potentials = {element: energy for element, (energy, _) in card.chemical_potentials.items()}
    energy = formation_energy(
        configuration, numbers["energy"], pristine_energy=card.pristine["energy"], chemical_potentials=potentials
    )
    numbers["formation_energy"] = round(energy, _DECIMALS)
    return Row(configuration, multiplicity, split, numbers, None)


def _split(configuration: Configuration, seed: int) -> str:
    """By a hash, so that it does not change with the sample; single defects, of which all else is made, train."""
    digest = hashlib.sha256(f"{seed}:{configuration.sites}:{configuration.defect_types}".encode()).digest()
    validates = configuration.n_defects > 1 and int.from_bytes(digest[:8]) < VALIDATION_SHARE * 2.0**64
    return "validation" if validates else "train"


def _write(path: Path, card: Card, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    text.write(f"# {json.dumps(asdict(card), sort_keys=True)}\n")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                "configuration": row.configuration.composition,
                "sites": " ".join(map(str, row.configuration.sites)),
                "defect_types": " ".join(DefectType.from_code(code).name for code in row.configuration.defect_types),
                "multiplicity": row.multiplicity,
                "split": row.split,
                "error": row.error or "",
                **{name: f"{value:.{_DECIMALS}f}" for name, value in row.numbers.items()},
            }
        )
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _read_card(line: str) -> Card:
    fields = json.loads(line.removeprefix("# "))
    if not line.startswith("# ") or fields.get("format") != _FORMAT:
        raise InputError(f"its first line has no card of format {_FORMAT}")
    fields["chemical_potentials"] = {
        e: (energy, source) for e, (energy, source) in fields["chemical_potentials"].items()
    }
    return Card(**fields)


def _read_row(row: Mapping[str, str]) -> Row:
    codes = tuple(DefectType.parse(name).code for name in row["defect_types"].split())
    configuration = Configuration(tuple(map(int, row["sites"].split())), codes)
    error = row["error"] or None
    numbers = {} if error else {name: float(row[name]) for name in _NUMBERS}
    if not all(map(math.isfinite, numbers.values())):
        raise InputError(f"the row of sites {row['sites']} has a number that is not finite")
    return Row(configuration, int(row["multiplicity"]), row["split"], numbers, error)
