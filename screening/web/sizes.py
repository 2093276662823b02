"""How large a question may be that is answered while somebody waits; the commands have no such limits."""

from __future__ import annotations

from screening.defects.host import Host, Supercell
from screening.errors import InputError
from screening.pipeline.space_requests import SpaceRequest

MOST_SITES = 800  # 16x16 of MoS2 has 768: its symmetry takes seconds, that of 25x25 minutes
MOST_DEFECTS = 12  # 10^19 configurations of four types are counted in seconds


def check_supercell(host: Host, text: str) -> Supercell:
    """The supercell that is named, if it is not too large to be looked at here.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    supercell = Supercell.parse(host, text)
    (a, b, c) = ([int(x) for x in row] for row in supercell.matrix)
    cells = abs(
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    )  # in whole numbers, for they may be huge
    if cells * len(host.species) > MOST_SITES:
        raise InputError(
            f"supercell {text} of {host.name} has {cells * len(host.species)} sites; here up to {MOST_SITES} are "
            "looked at while somebody waits: use the commands for it"
        )
    return supercell


def check_space(host: Host, request: SpaceRequest) -> None:
    """Make sure that a search space is not too large to be counted here.

    Raises:
        InputError: it is.
    """
    check_supercell(host, request.supercell)
    if request.max_defects is not None and request.max_defects > MOST_DEFECTS:
        raise InputError(
            f"max_defects is {request.max_defects}; here up to {MOST_DEFECTS} are counted while somebody waits: use "
            "`screening count` and `screening campaign plan` for more"
        )
