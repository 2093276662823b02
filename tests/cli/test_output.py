"""Tables on a terminal of a given width, and in a file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from screening.cli.output import print_table

WIDE = """
from screening.cli.output import print_table
columns = [f"property_{i}" for i in range(12)] + ["defects"]
print_table(columns, ROWS)
"""
ROWS = [[i + row * 100 + 0.5 for i in range(12)] + ["v_S@16 Se_S@20"] for row in range(2)]


def on_terminal(program: str, columns: int) -> list[str]:
    """What a program prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.defpath, "COLUMNS": str(columns), "LINES": "50", "TERM": "dumb"}
    subprocess.run([sys.executable, "-c", program], env=environment, stdout=theirs, check=True, timeout=60)
    os.close(theirs)
    said = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not block:
            break
        said += block
    os.close(ours)
    return said.decode().splitlines()


def test_a_row_that_is_too_wide_for_the_terminal_is_a_list_of_all_its_columns() -> None:
    lines = on_terminal(WIDE.replace("ROWS", repr(ROWS)), 80)
    first, second = (
        [*([f"property_{i}", f"{i + row * 100 + 0.5:.4f}"] for i in range(12)), ["defects", "v_S@16 Se_S@20"]]
        for row in range(2)
    )
    assert [line.strip().split(maxsplit=1) for line in lines] == [*first, [], *second]


def test_without_rows_the_names_of_all_columns_are_left() -> None:
    lines = on_terminal(WIDE.replace("ROWS", "[]"), 80)
    assert [line.strip() for line in lines] == [*(f"property_{i}" for i in range(12)), "defects"]


def test_a_terminal_that_is_wide_enough_has_a_table() -> None:
    lines = on_terminal(WIDE.replace("ROWS", repr(ROWS)), 200)
    assert [line.split()[-1] for line in lines] == ["defects", "Se_S@20", "Se_S@20"]
    # long texts are folded, as long as there is room for a readable part of them
    program = "from screening.cli.output import print_table; print_table(['x', 'why'], [[1.5, 'because ' * 20]])"
    lines = on_terminal(program, 40)
    assert lines[0].split() == ["x", "why"]
    assert " ".join(lines[1:]).split() == ["1.5000", *["because"] * 20]


def test_a_file_has_every_column_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"column_{i}" for i in range(40)]
    print_table(columns, [[*(float(i) for i in range(39)), "x" * 300]])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == columns
    assert row.split() == [*(f"{i}.0000" for i in range(39)), "x" * 300]
