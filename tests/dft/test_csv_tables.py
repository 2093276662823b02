import gzip
from pathlib import Path

import pytest

from screening.dft.csv_tables import number, number_of_file, read_table, rows_by
from screening.errors import FileFormatError, InputError

TEXT = "_id,energy,note\na,-1.5,x\nb,,y\na,nan,z\n"


def test_plain_and_gzipped_files_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TEXT)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    plain = read_table(tmp_path / "t.csv", ["_id", "energy"])
    assert plain == [{"_id": "a", "energy": "-1.5"}, {"_id": "b", "energy": ""}, {"_id": "a", "energy": "nan"}]
    assert read_table(tmp_path / "t.csv.gz", ["_id", "energy"]) == plain


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read_table(tmp_path / "t.csv", ["_id"])[0] == {"_id": "a"}


def test_an_absent_column_is_named_with_those_present(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TEXT)
    with pytest.raises(FileFormatError, match=r"t\.csv has no column gap; its columns are _id, energy, note"):
        read_table(tmp_path / "t.csv", ["_id", "gap"])


@pytest.mark.parametrize("kept", [10, -9, -1])
def test_a_gzip_file_cut_anywhere_is_refused(tmp_path: Path, kept: int) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TEXT.encode())[:kept])
    with pytest.raises(FileFormatError, match="cut short"):
        read_table(tmp_path / "t.csv.gz", ["_id"])


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(TEXT.encode()))
    content[-6] ^= 0xFF  # the checksum
    (tmp_path / "t.csv.gz").write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match="cut short or no gzip"):
        read_table(tmp_path / "t.csv.gz", ["_id"])


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="no CSV file"):
        read_table(tmp_path / "t.csv", ["_id"])


def test_rows_of_one_value_stay_together_and_a_row_without_it_is_called_by_its_line() -> None:
    rows = rows_by("_id", [{"_id": "a", "n": "1"}, {"_id": "", "n": "2"}, {"_id": "a", "n": "3"}])
    assert {name: [row["n"] for row in group] for name, group in rows.items()} == {"a": ["1", "3"], "line 3": ["2"]}


@pytest.mark.parametrize("text", ["", None, "nan", "inf", "-1,5", "one"])
def test_only_finite_numbers_are_numbers(text: str | None) -> None:
    with pytest.raises(InputError, match=r"its energy is .*; expected a finite number"):
        number({"energy": text}, "energy")


def test_a_number_the_file_depends_on_names_the_file() -> None:
    assert number_of_file({"energy": "-1.5e2"}, "energy", Path("x.csv")) == -150.0
    with pytest.raises(FileFormatError, match=r"x\.csv"):
        number_of_file({"energy": ""}, "energy", Path("x.csv"))
