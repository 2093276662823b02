"""A Slurm array that runs VASP in folders whose inputs are written, a job for each folder.

POTCARs are put together there, from the names in POTCAR.spec, since their licence does not let them travel. A folder
whose run is complete is left alone, so that the array can be submitted again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

MOST_AT_ONCE = 20

_SCRIPT = r"""#!/bin/bash
#SBATCH --job-name=@NAME@
#SBATCH --array=0-@LAST@%@AT_ONCE@
#SBATCH --ntasks=@TASKS@
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%A_%a.log
#
# Calculations of @TITLE@: a job of the array for each folder below.
#
#   cd @PLACE@ && VASP_POTENTIALS=/path/to/potpaw_PBE sbatch run.sbatch
#   screening round submitted @ROUND@ --job NUMBER    so that nobody submits them twice
#   screening round import @PLACE@    takes in what is done, any time and as often as you like
#
# VASP_POTENTIALS is the folder with a folder of each potential of POTCAR.spec; VASP is the command, vasp_std if not
# set. Options of sbatch on the command line come before those above: --ntasks=64 --partition=long.

set -euo pipefail

folders=(
@FOLDERS@
)

cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")}/${folders[${SLURM_ARRAY_TASK_ID:?is set by sbatch}]}"

if [[ -s vasprun.xml ]] && tail -c 200 vasprun.xml | grep -q '</modeling>'; then
  echo "$PWD: vasprun.xml is complete; remove it to run again"
  exit 0
fi

if [[ ! -s POTCAR ]]; then
  : "${VASP_POTENTIALS:?set it to the folder of the potentials, or write POTCAR yourself}"
  while read -r potential; do
    cat "$VASP_POTENTIALS/$potential/POTCAR"
  done <POTCAR.spec >POTCAR.part
  mv POTCAR.part POTCAR
fi

read -ra vasp <<<"${VASP:-vasp_std}"
srun "${vasp[@]}"
"""


def array_script(folders: Sequence[str], *, title: str, round_name: str, place: str, n_tasks: int = 16) -> str:
    """The script; `folders` are names beside it, without blanks.

    Args:
        title: what is calculated, on a line of a comment.
        place: the folder that the script is written into, as a shell reads it.
    """
    assert folders
    assert all(re.fullmatch(r"[\w.-]+", folder) for folder in folders)
    values = {
        "NAME": re.sub(r"[^\w-]+", "-", round_name), "LAST": str(len(folders) - 1), "AT_ONCE": str(MOST_AT_ONCE),
        "TASKS": str(n_tasks), "TITLE": " ".join(title.split()), "ROUND": quoted(round_name), "PLACE": place,
        "FOLDERS": "\n".join(f"  {folder}" for folder in folders),
    }  # fmt: skip
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], _SCRIPT)


def quoted(text: str) -> str:
    """A word as a shell reads it, on one line."""
    return shlex.quote(" ".join(text.split()))
