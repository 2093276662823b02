"""Where results belong: the stored supercell and the configuration that a structure, or numbered sites, stand for."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.defects.matching import Matcher, Structure, find_supercell
from screening.dft.result_files import FoundResult
from screening.dft.vasp import host_of_bulk
from screening.errors import InputError, StructureError
from screening.pipeline.hosts import StoredSupercell, add_supercell, host_of, load_supercell


class Places:
    """Finds the supercell and configuration of each result, and stores what is new of them.

    Attributes:
        stored: the supercells that were found so far, by id.
    """

    def __init__(self, session: Session, host_name: str | None) -> None:
        self._session = session
        self._host_name = host_name
        self._hosts = _known_hosts(session, host_name)
        self._by_lattice: dict[tuple[bytes, frozenset[str]], int] = {}
        self._matchers: dict[int, Matcher] = {}
        self.stored: dict[int, StoredSupercell] = {}

    def place(self, found: FoundResult) -> tuple[StoredSupercell, Configuration]:
        """Supercell and configuration of a result.

        Raises:
            StructureError: the structure fits no known host.
            InputError: sites are given without the supercell they are numbered in.
        """
        if found.structure is None:
            return self._numbered(found)
        structure = found.structure
        key = (structure.lattice.tobytes(), frozenset(structure.species))
        if key not in self._by_lattice:
            self._by_lattice[key] = self._keep(self._add_supercell(structure, may_bring_host=found.level is not None))
        identifier = self._by_lattice[key]
        if identifier not in self._matchers:
            self._matchers[identifier] = Matcher(self.stored[identifier].supercell)
        return self.stored[identifier], self._matchers[identifier].match(structure)

    def _add_supercell(self, structure: Structure, *, may_bring_host: bool) -> StoredSupercell:
        try:
            return add_supercell(self._session, find_supercell(structure, self._hosts))
        except StructureError:
            host = host_of_bulk(structure, self._host_name) if may_bring_host else None
            if host is None:
                raise
            return add_supercell(self._session, find_supercell(structure, [host]))

    def _numbered(self, found: FoundResult) -> tuple[StoredSupercell, Configuration]:
        if self._host_name is None:
            raise InputError("sites are numbers in a supercell; name its host with --host")
        assert found.configuration is not None
        identifier = queries.supercell_id_of(self._session, self._host_name, found.supercell)
        if identifier not in self.stored:
            self._keep(load_supercell(self._session, identifier))
        stored = self.stored[identifier]
        check_numbering(found.configuration, stored.supercell)
        return stored, found.configuration

    def _keep(self, stored: StoredSupercell) -> int:
        self.stored[stored.id] = stored
        return stored.id


def count_hosts(session: Session) -> int:
    """How many hosts the database has; a structure that fits none of them may fit one that comes later."""
    return session.scalar(select(func.count()).select_from(tables.Host)) or 0


def check_numbering(configuration: Configuration, supercell: Supercell) -> None:
    """Make sure that every defect sits on a site of the species that it removes.

    Raises:
        InputError: one does not.
    """
    for site, code in zip(configuration.sites, configuration.defect_types, strict=True):
        defect_type = DefectType.from_code(code)
        if not 0 <= site < supercell.n_sites or supercell.species[site] != defect_type.removed:
            raise InputError(
                f"{defect_type.name} is on site {site}; {supercell.label} {supercell.host.name} has "
                f"{defect_type.removed} on the sites {supercell.allowed(defect_type).tolist()}"
            )


def _known_hosts(session: Session, host_name: str | None) -> list[Host]:
    """Hosts of the database, and those of the catalogue that it does not hold; only one if it is named."""
    hosts = {row.name: host_of(row) for row in session.scalars(select(tables.Host).order_by(tables.Host.id))}
    for name in host_names():
        hosts.setdefault(name, catalogue_host(name))
    return [host for name, host in hosts.items() if host_name in (None, name)]
