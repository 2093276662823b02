"""Worker processes whose network sleeps: the rest of a worker's way through a chunk is the real one.

`python -m tests.benchmarks.scaling_workers` reads a job from its standard input (JSON, see `Job`: the address of the
database must not be seen by `ps`), forks the workers when everything that they share is imported and compiled, and
prints what they have done as JSON. Each claims chunks, scans them with `scan_unit` (enumeration, counters, histograms,
COPY, lease, checksum) and ends campaigns, as workers.tasks does. Only the network is absent: in its place a worker
sleeps for as long as a worker of a given rate would need, and stores random numbers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.session import make_engine, session_scope
from screening.defects.checksum import checksum
from screening.defects.enumeration import Block, enumerate_chunk, plan_chunks
from screening.pipeline import scanning
from screening.pipeline.campaigns import close_over
from screening.pipeline.dispatch import CONDITIONS
from screening.pipeline.hosts import StoredSupercell
from screening.pipeline.searches import load_search_space


@dataclass(frozen=True)
class Job:
    """What the workers are to do.

    Attributes:
        s_per_candidate: that the network would take, seconds.
        limit_s: no chunk is begun after so many seconds.
    """

    database_url: str
    search_space_id: int
    n_workers: int
    s_per_candidate: float
    limit_s: float


@dataclass
class Work:
    """What a worker has done.

    Attributes:
        claims_s: seconds of each claim.
        rest_s: seconds of each chunk with its claim, less the network's.
        network_s: seconds of all chunks in the network's place.
        cpu_s: seconds of CPU of the process.
    """

    claims_s: list[float] = field(default_factory=list)
    rest_s: list[float] = field(default_factory=list)
    network_s: float = 0.0
    cpu_s: float = 0.0
    candidates: int = 0
    ended_at: float = 0.0


def main() -> None:
    """Run a job."""
    job = Job(**json.load(sys.stdin))
    _prepare(job)
    context = multiprocessing.get_context("fork")
    begin = time.monotonic() + 0.5 + 0.02 * job.n_workers
    pipes, processes = [], []
    for number in range(job.n_workers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(job, number, begin, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    works = [Work(**pipe.recv()) for pipe in pipes]
    for process in processes:
        process.join()
    json.dump(
        {
            "seconds": max(work.ended_at for work in works) - begin,
            "chunks": sum(len(work.rest_s) for work in works),
            "candidates": sum(work.candidates for work in works),
            "network_s": sum(work.network_s for work in works),
            "cpu_s": sum(work.cpu_s for work in works),
            "claims_s": [seconds for work in works for seconds in work.claims_s],
            "rest_s": [seconds for work in works for seconds in work.rest_s],
        },
        sys.stdout,
    )


def _prepare(job: Job) -> None:
    """Bring into memory what the workers share: the supercell, its symmetry, the compiled walk."""
    engine = make_engine(job.database_url)
    with session_scope(engine) as session:
        stored, space = load_search_space(session, job.search_space_id)
    engine.dispose()
    first = plan_chunks(space, stored.symmetry, rows=1000)[0]
    for block in enumerate_chunk(space, stored.symmetry, first):
        checksum(block)


def _run(job: Job, number: int, begin: float, pipe: Connection) -> None:
    """A worker's life."""
    os.setsid()  # Linux shares the cores between sessions: the workers compete one by one, as the server's processes do
    work = Work()
    generator = np.random.default_rng(number)
    scanning._scorer = _sleeper(job.s_per_candidate, generator, work)
    engine = make_engine(job.database_url)
    time.sleep(max(0.0, begin - time.monotonic()))
    cpu_before = time.process_time()
    while time.monotonic() < begin + job.limit_s:
        before, slept = time.perf_counter(), work.network_s
        owner = leases.new_owner()
        with session_scope(engine) as session:
            chunk_id = leases.claim_next(session, tables.Chunk, owner, *CONDITIONS["score"])
        work.claims_s.append(time.perf_counter() - before)
        if chunk_id is None:
            break
        scanning.scan_unit(engine, chunk_id, owner, device="cpu")
        close_over(engine)
        work.rest_s.append(time.perf_counter() - before - (work.network_s - slept))
    work.ended_at, work.cpu_s = time.monotonic(), time.process_time() - cpu_before
    engine.dispose()
    pipe.send(asdict(work))
    pipe.close()


def _sleeper(s_per_candidate: float, generator: np.random.Generator, work: Work) -> Callable[..., scanning.Score]:
    """What takes the place of scanning._scorer: it reads the weights, as that one does, and sleeps."""

    def scorer(session: Session, campaign: tables.Campaign, _stored: StoredSupercell, **_device: Any) -> scanning.Score:
        model = session.get_one(tables.TrainedModel, campaign.model_id)
        assert model.weights
        names = [f"{name}_{part}" for name in model.properties for part in ("mean", "std")]

        def score(block: Block) -> scanning.Scores:
            started = time.perf_counter()
            scores = {name: generator.random(len(block), np.float32) for name in names}
            left = len(block) * s_per_candidate - (time.perf_counter() - started)
            if left > 0:
                time.sleep(left)
            work.network_s += time.perf_counter() - started
            work.candidates += len(block)
            return scores

        return score

    return scorer


if __name__ == "__main__":
    main()
