import gzip
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.io.vasp.outputs import Vasprun

from screening.defects.host import Supercell
from screening.defects.matching import Matcher, find_supercell
from screening.dft.vasp import agree, differences, host_of_bulk, merge, read_vasprun
from screening.errors import FileFormatError

RUNS = [f"{name}/{part}" for name in ("GaN_Mg_Ga", "GaN_v_N") for part in ("bulk", "defect")]


def run_of(shared_data: Path, name: str) -> Path:
    return shared_data / "vasp" / name / "vasprun.xml.gz"


@pytest.mark.parametrize("name", RUNS)
def test_energy_and_levels_are_those_of_pymatgen(shared_data: Path, name: str) -> None:
    path = run_of(shared_data, name)
    found = read_vasprun(path)
    run = Vasprun(path, parse_dos=False, parse_potcar_file=False, separate_spins=True, occu_tol=0.5)
    gaps, lumos, homos, _ = run.eigenvalue_band_properties
    assert found.problem is None
    assert found.energy == pytest.approx(float(run.final_energy))
    assert found.properties["homo"] == pytest.approx(max(homos))
    assert found.properties["lumo"] == pytest.approx(min(lumos))
    assert found.properties["homo_lumo_gap_min"] == pytest.approx(min(gaps))
    channels = [found.properties["homo_lumo_gap_majority"], found.properties["homo_lumo_gap_minority"]]
    assert sorted(channels) == pytest.approx(sorted(gaps))


def test_the_majority_channel_holds_the_unpaired_electron(shared_data: Path) -> None:
    donor = read_vasprun(run_of(shared_data, "GaN_v_N/defect")).properties
    assert donor["total_mag"] == pytest.approx(1.0, abs=1e-3)
    assert donor["homo_lumo_gap_majority"] < 1.0 < donor["homo_lumo_gap_minority"]  # the donor's level is half full


def test_the_level_of_theory_says_functional_cutoff_and_pseudopotentials(shared_data: Path) -> None:
    level = read_vasprun(run_of(shared_data, "GaN_Mg_Ga/defect")).level
    assert level is not None
    assert (level.name, level.code, level.functional) == ("VASP PBEsol 500 eV", "VASP", "PBEsol")
    assert level.settings["pseudopotentials"] == {
        "Mg": "PAW_PBE Mg 13Apr2007",
        "Ga": "PAW_PBE Ga_d 06Jul2010",
        "N": "PAW_PBE N 08Apr2002",
    }
    assert level.settings["k_points"] == "reciprocal 0.25 0.25 0.25 shift 0 0 0"
    assert level.settings["spin_polarised"] is True


def test_levels_agree_by_their_common_elements(shared_data: Path) -> None:
    bulk, defect, other = (
        read_vasprun(run_of(shared_data, name)).level for name in ("GaN_Mg_Ga/bulk", "GaN_Mg_Ga/defect", "GaN_v_N/bulk")
    )
    assert bulk is not None
    assert defect is not None
    assert other is not None
    assert agree(bulk.settings, defect.settings) == 2
    assert merge(bulk.settings, defect.settings) == defect.settings
    assert agree(bulk.settings, other.settings) is None  # another cutoff


@pytest.mark.parametrize(("name", "n_cells"), [("GaN_Mg_Ga/bulk", 8), ("GaN_v_N/bulk", 8)])
def test_a_bulk_run_brings_its_host(shared_data: Path, name: str, n_cells: int) -> None:
    structure = read_vasprun(run_of(shared_data, name)).structure
    assert structure is not None
    host = host_of_bulk(structure)
    assert host is not None
    assert (host.name, host.species, host.is_layer) == ("GaN", ("Ga", "Ga", "N", "N"), False)
    lengths = np.linalg.norm(host.lattice, axis=1)
    assert lengths == pytest.approx([3.19, 3.19, 5.19], rel=0.02)  # wurtzite, measured
    supercell = find_supercell(structure, [host])
    assert (supercell.n_cells, Matcher(supercell).match(structure).n_defects) == (n_cells, 0)


@pytest.mark.parametrize("name", ["GaN_Mg_Ga/defect", "GaN_v_N/defect"])
def test_a_run_of_a_defect_is_no_host(shared_data: Path, name: str) -> None:
    structure = read_vasprun(run_of(shared_data, name)).structure
    assert structure is not None
    assert host_of_bulk(structure) is None


@pytest.mark.parametrize(("name", "label"), [("GaN_Mg_Ga", "Mg_Ga"), ("GaN_v_N", "v_N")])
def test_relaxed_defects_are_found(shared_data: Path, name: str, label: str) -> None:
    bulk = read_vasprun(run_of(shared_data, f"{name}/bulk")).structure
    defect = read_vasprun(run_of(shared_data, f"{name}/defect")).structure
    assert bulk is not None
    assert defect is not None
    host = host_of_bulk(bulk)
    assert host is not None
    supercell: Supercell = find_supercell(bulk, [host])
    assert Matcher(supercell).match(defect).composition == label


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 0.9999])
def test_a_run_cut_short_says_what_it_calculates_and_how_far_it_came(
    shared_data: Path, tmp_path: Path, share: float
) -> None:
    whole = run_of(shared_data, "GaN_v_N/defect")
    text = gzip.decompress(whole.read_bytes())
    head = text[: int(share * len(text))]
    found, complete = read_vasprun(written(tmp_path / "vasprun.xml", head)), read_vasprun(whole)
    n_steps = head.count(b"</calculation>")
    assert found.problem == f"it is cut short after {n_steps} ionic steps; fetch it again or run it to its end"
    assert np.isnan(found.energy)
    assert found.level == complete.level
    start = Vasprun(whole, parse_dos=False, parse_potcar_file=False).initial_structure
    assert found.structure is not None
    assert found.structure.positions == pytest.approx(start.frac_coords)
    assert found.structure.species == tuple(site.specie.symbol for site in start)


def test_of_an_archive_cut_short_what_can_be_unpacked_is_read(shared_data: Path, tmp_path: Path) -> None:
    content = run_of(shared_data, "GaN_v_N/bulk").read_bytes()
    found = read_vasprun(written(tmp_path / "vasprun.xml.gz", content[:-200]))
    assert found.problem is not None
    assert found.problem.startswith("it is cut short after ")


@pytest.mark.parametrize("n_bytes", [0, 40, 3000, 15000])
def test_a_run_cut_short_before_its_first_step_is_refused(shared_data: Path, tmp_path: Path, n_bytes: int) -> None:
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/bulk").read_bytes())
    assert n_bytes < text.index(b"<calculation>")
    with pytest.raises(FileFormatError, match="cut short"):
        read_vasprun(written(tmp_path / "vasprun.xml", text[:n_bytes]))


def test_levels_that_differ_say_in_what(shared_data: Path, tmp_path: Path) -> None:
    level = read_vasprun(run_of(shared_data, "GaN_v_N/defect")).level
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/defect").read_bytes())
    changed = text.replace(b"PAW_PBE N 08Apr2002", b"PAW_PBE N_s 07Sep2000")
    changed = re.sub(rb'(name="ENMAX">\s*)420', rb"\g<1>400", changed)
    other = read_vasprun(written(tmp_path / "vasprun.xml", changed)).level
    assert level is not None
    assert other is not None
    assert differences(level, level) == []
    assert differences(other, level) == [
        "cutoff 400 against 420",
        "pseudopotentials of N PAW_PBE N_s 07Sep2000 against PAW_PBE N 08Apr2002",
    ]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ((rb'(name="PREC">\s*)\w+', rb"\g<1>normal"), "precision normal against accurate"),
        ((rb'(name="LREAL">\s*)F', rb"\g<1>T"), "real_space_projection True against False"),
        ((rb'(name="SIGMA">\s*)0.05', rb"\g<1>0.20"), "smearing [0, 0.2] against [0, 0.05]"),
    ],
)
def test_a_run_with_other_grids_projection_or_smearing_is_at_another_level(
    shared_data: Path, tmp_path: Path, pattern: tuple[bytes, bytes], said: str
) -> None:
    level = read_vasprun(run_of(shared_data, "GaN_v_N/defect")).level
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/defect").read_bytes())
    other = read_vasprun(written(tmp_path / "vasprun.xml", re.sub(*pattern, text))).level
    assert level is not None
    assert other is not None
    assert differences(other, level) == [said]
    assert agree(other.settings, level.settings) is None


def test_a_level_that_was_stored_before_these_were_read_agrees_and_learns_them(shared_data: Path) -> None:
    level = read_vasprun(run_of(shared_data, "GaN_v_N/defect")).level
    assert level is not None
    later = ("precision", "real_space_projection", "smearing")
    before = {key: value for key, value in level.settings.items() if key not in later}
    assert agree(before, level.settings) == 2
    assert differences(level, replace(level, settings=before)) == []
    assert merge(before, level.settings) == level.settings


def test_a_metal_has_no_gap(shared_data: Path, tmp_path: Path) -> None:
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/bulk").read_bytes()).decode()
    kpoint = re.compile(r'<set comment="kpoint 1">(.*?)</set>', re.DOTALL)

    def with_a_second(found: re.Match[str]) -> str:  # the same bands, all of them 6 eV higher
        higher = re.sub(r"<r>\s*(\S+)", lambda row: f"<r> {float(row[1]) + 6.0:.4f}", found[1])
        return f'{found[0]}<set comment="kpoint 2">{higher}</set>'

    text = re.sub(r"<eigenvalues>.*?</eigenvalues>", lambda b: kpoint.sub(with_a_second, b[0]), text, flags=re.DOTALL)
    text = re.sub(r'(<varray name="kpointlist" >\s*)(<v>.*?</v>)', r"\1\2\2", text)
    text = re.sub(r'(<varray name="weights" >\s*)<v>.*?</v>', r"\1<v> 0.5 </v><v> 0.5 </v>", text)
    insulator = read_vasprun(run_of(shared_data, "GaN_v_N/bulk")).properties
    metal = read_vasprun(written(tmp_path / "vasprun.xml", text.encode()))
    assert metal.problem is None
    assert 0.0 < insulator["homo_lumo_gap_min"] < 6.0
    gaps = [metal.properties[f"homo_lumo_gap_{kind}"] for kind in ("min", "majority", "minority")]
    assert gaps == [0.0, 0.0, 0.0]
    assert metal.properties["homo"] == pytest.approx(insulator["homo"] + 6.0)
    assert metal.properties["lumo"] == pytest.approx(insulator["lumo"])


def test_a_run_without_a_calculation_is_refused(shared_data: Path, tmp_path: Path) -> None:
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/bulk").read_bytes()).decode()
    path = tmp_path / "vasprun.xml"
    path.write_text(text[: text.index("<calculation>")] + "</modeling>\n")
    with pytest.raises(FileFormatError, match="no complete total-energy calculation"):
        read_vasprun(path)
