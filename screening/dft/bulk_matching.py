"""Many CIFs to canonical configurations, on all cores.

Parsing and matching take milliseconds a structure and know nothing of each other, so batches of texts go to
processes and short integer tuples come back. The processes are spawned (a fork of a program with threads, such as
one with a database connection, may hang) and keep the matcher of each supercell they have seen. Few structures are
matched here: to spawn would take longer.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from threading import Thread
from types import TracebackType

import numpy as np

from screening.defects.defect_types import Configuration
from screening.defects.enumeration import canonical_form
from screening.defects.host import Host, Supercell
from screening.defects.matching import Matcher
from screening.defects.symmetry import Symmetry, find_symmetry
from screening.dft.structures import parse_cif
from screening.errors import InputError, ServiceError

FEW = 300  # structures that one process matches in about the time that spawning takes
_BATCH = 64
_BATCHES_AHEAD = 3  # per process: enough to keep it busy, few enough to keep a large archive out of memory


@dataclass(frozen=True)
class Match:
    """What a structure is.

    Attributes:
        configuration: in canonical form; None if the structure is no defective supercell of the host.
        multiplicity: size of the configuration's symmetry orbit.
        reason: why there is no configuration.
    """

    name: str
    configuration: Configuration | None
    multiplicity: int = 0
    reason: str = ""


@dataclass(frozen=True)
class _Cell:
    """A supercell as a key: equal for equal supercells, also of another process."""

    name: str
    lattice: tuple[float, ...]
    species: tuple[str, ...]
    positions: tuple[float, ...]
    is_layer: bool
    matrix: tuple[int, ...]

    @classmethod
    def of(cls, supercell: Supercell) -> _Cell:
        host = supercell.host
        return cls(
            host.name,
            tuple(host.lattice.ravel().tolist()),
            host.species,
            tuple(host.positions.ravel().tolist()),
            host.is_layer,
            tuple(supercell.matrix.ravel().tolist()),
        )

    def supercell(self) -> Supercell:
        lattice, positions = np.array(self.lattice).reshape(3, 3), np.array(self.positions).reshape(-1, 3)
        host = Host(self.name, lattice, self.species, positions, self.is_layer, "")
        return Supercell(host, np.array(self.matrix, np.int64).reshape(3, 3))


class MatchingPool:
    """Processes that match structures, started when they are first worth it and ended with the block.

    Args:
        n_processes: by default one for each core that this process may use.
    """

    def __init__(self, n_processes: int | None = None) -> None:
        self._n_processes = n_processes or len(os.sched_getaffinity(0))
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> MatchingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def match(self, texts: Iterable[tuple[str, str]], supercell: Supercell) -> Iterator[Match]:
        """Match (name, CIF) pairs to a supercell, in their order.

        Raises:
            ServiceError: a process died.
        """
        cell = _Cell.of(supercell)
        remaining = iter(texts)
        first = list(itertools.islice(remaining, FEW + 1))
        if len(first) <= FEW or self._n_processes == 1:
            for batch in _batches(itertools.chain(first, remaining)):
                yield from _match_batch(cell, batch)
            return
        try:
            yield from self._match_elsewhere(cell, _batches(itertools.chain(first, remaining)))
        except BrokenProcessPool as error:
            raise ServiceError(
                "a process that matches structures died: out of memory, or called from a script that does not keep "
                "its code below `if __name__ == '__main__'`"
            ) from error

    def _match_elsewhere(self, cell: _Cell, batches: Iterable[tuple[tuple[str, str], ...]]) -> Iterator[Match]:
        """Keep the processes a few batches ahead of whoever takes the matches."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._n_processes, mp_context=get_context("spawn"), initializer=_begin_process
            )
        ahead: deque[Future[list[Match]]] = deque()
        for batch in batches:
            ahead.append(self._executor.submit(_match_batch, cell, batch))
            if len(ahead) >= _BATCHES_AHEAD * self._n_processes:
                yield from ahead.popleft().result()
        for future in ahead:
            yield from future.result()


def _begin_process() -> None:
    """Leave ^C to the parent, which ends the pool, and end with a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the main thread may wait for a batch that never comes


def _batches(texts: Iterator[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    while batch := tuple(itertools.islice(texts, _BATCH)):
        yield batch


def _match_batch(cell: _Cell, batch: tuple[tuple[str, str], ...]) -> list[Match]:
    matcher, symmetry = _tools(cell)
    return [_match(name, text, matcher, symmetry) for name, text in batch]


@lru_cache(maxsize=8)
def _tools(cell: _Cell) -> tuple[Matcher, Symmetry]:
    supercell = cell.supercell()
    return Matcher(supercell), find_symmetry(supercell)


def _match(name: str, text: str, matcher: Matcher, symmetry: Symmetry) -> Match:
    try:
        configuration, multiplicity = canonical_form(symmetry, matcher.match(parse_cif(text, name)))
    except InputError as error:
        return Match(name, None, reason=str(error))
    return Match(name, configuration, multiplicity)
