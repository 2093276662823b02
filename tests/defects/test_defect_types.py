from collections import Counter

import pytest

from screening.defects.defect_types import (
    Configuration,
    DefectType,
    atomic_number,
    composition_label,
    parse_defect_types,
    symbol_of,
)
from screening.errors import InputError


@pytest.mark.parametrize(
    ("name", "removed", "added", "code"),
    [
        ("v_S", "S", None, 128 * 16),
        ("Se_S", "S", "Se", 128 * 16 + 34),
        ("W_Mo", "Mo", "W", 128 * 42 + 74),
        ("V_O", "O", "V", 128 * 8 + 23),  # vanadium on oxygen, not a vacancy
        ("v_V", "V", None, 128 * 23),
    ],
)
def test_name_code_and_parts_of_a_defect_type_agree(name: str, removed: str, added: str | None, code: int) -> None:
    defect_type = DefectType.parse(name)
    assert (defect_type.removed, defect_type.added, defect_type.code) == (removed, added, code)
    assert defect_type.name == name
    assert DefectType.from_code(code) == defect_type


@pytest.mark.parametrize("name", ["S", "v-S", "x_S", "v_", "V_s", "Xx_S", "v_Zz", "v_S+Se_S", ""])
def test_what_is_no_defect_type_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        DefectType.parse(name)


def test_putting_the_species_that_is_there_is_no_defect() -> None:
    with pytest.raises(InputError, match="S_S is no defect"):
        DefectType.parse("S_S")


def test_every_code_fits_a_smallint() -> None:
    assert DefectType("Og", "Ts").code < 2**15


@pytest.mark.parametrize("symbol", ["X", "mo", "MO", "", "Mo4+"])
def test_what_is_no_element_has_no_atomic_number(symbol: str) -> None:
    with pytest.raises(InputError, match="not a chemical element"):
        atomic_number(symbol)


def test_symbol_is_the_inverse_of_atomic_number() -> None:
    assert [symbol_of(atomic_number(symbol)) for symbol in ("H", "Mo", "Og")] == ["H", "Mo", "Og"]


def test_composition_is_ordered_by_code_and_counts_repeats() -> None:
    v_s, se_s, w_mo = (DefectType.parse(name).code for name in ("v_S", "Se_S", "W_Mo"))
    assert Configuration((1, 5, 9, 20), (w_mo, se_s, v_s, v_s)).composition == "2*v_S+Se_S+W_Mo"


def test_pristine_supercell_is_named_so() -> None:
    assert Configuration((), ()).composition == composition_label(Counter()) == "pristine"


def test_sites_of_a_configuration_ascend() -> None:
    with pytest.raises(AssertionError, match="ascend"):
        Configuration((3, 3), (2048, 2048))


def test_defect_types_are_sorted_by_code_whatever_their_order() -> None:
    names = [defect_type.name for defect_type in parse_defect_types("W_Mo, Se_S,v_Mo,v_S")]
    assert names == ["v_S", "Se_S", "v_Mo", "W_Mo"]


def test_a_defect_type_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="named twice"):
        parse_defect_types(["v_S", "v_S"])
