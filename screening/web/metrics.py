"""What Prometheus reads at /metrics: times of requests, and from the database and the broker the state of the work."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis, RedisError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database.tables import Campaign, Chunk, TrainedModel
from screening.pipeline.dispatch import CONDITIONS, QUEUES, UNITS
from screening.web.access import Reader
from screening.web.server import Server, Transaction, server_of

REGISTRY = CollectorRegistry()
REQUEST_SECONDS = Histogram(
    "screening_request_seconds",
    "Time to answer a request, seconds",
    ["method", "route", "status"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0),
    registry=REGISTRY,
)
_RATE_WINDOW_S = 60.0

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def show_metrics(request: Request, session: Transaction, caller: Reader) -> Response:
    """All figures in the text format of Prometheus."""
    return Response(
        generate_latest(REGISTRY) + generate_latest(_Work(session, server_of(request))),
        media_type=CONTENT_TYPE_LATEST,
    )


class _Work(Collector):
    """Figures of one look at the database and the broker."""

    def __init__(self, session: Session, server: Server) -> None:
        self.session = session
        self.server = server

    def collect(self) -> Iterator[Metric]:
        """The figures."""
        yield self._queues()
        yield self._units()
        yield self._chunks()
        yield self._rate()
        yield self._retrainings()

    def _queues(self) -> Metric:
        found = GaugeMetricFamily("screening_queue_messages", "Messages that wait in a queue", labels=["queue"])
        try:
            with Redis.from_url(self.server.redis_url, socket_timeout=2.0, socket_connect_timeout=2.0) as client:
                for queue in sorted(set(QUEUES.values())):
                    found.add_metric([queue], client.llen(queue))
        except RedisError:
            found.add_metric(["unreachable"], float("nan"))
        return found

    def _units(self) -> Metric:
        found = GaugeMetricFamily(
            "screening_units_of_work", "Units of work by kind and state", labels=["kind", "state"]
        )
        for kind, table in UNITS.items():
            grouped = select(table.state, func.count()).where(*CONDITIONS[kind]).group_by(table.state)
            for state, count in self.session.execute(grouped):
                found.add_metric([kind, state], count)
        return found

    def _chunks(self) -> Metric:
        found = GaugeMetricFamily(
            "screening_campaign_chunks", "Chunks of campaigns that run, by state", labels=["campaign", "state"]
        )
        grouped = (
            select(Campaign.name, Chunk.state, func.count())
            .join(Chunk, Chunk.campaign_id == Campaign.id)
            .where(Campaign.state.in_(("running", "paused")))
            .group_by(Campaign.name, Chunk.state)
        )
        for name, state, count in self.session.execute(grouped):
            found.add_metric([name, state], count)
        return found

    def _rate(self) -> Metric:
        """Candidates of the chunks that ended in the last minute."""
        n = self.session.scalar(
            select(func.coalesce(func.sum(Chunk.rows_done), 0)).where(
                Chunk.state == "finished",
                Chunk.finished_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, _RATE_WINDOW_S),
            )
        )
        return GaugeMetricFamily(
            "screening_candidates_per_second", "Candidates scanned in the last minute, per second",
            value=float(n or 0) / _RATE_WINDOW_S,
        )  # fmt: skip

    def _retrainings(self) -> Metric:
        n = self.session.scalar(
            select(func.count()).where(TrainedModel.parent_id.is_not(None), TrainedModel.state == "finished")
        )
        return CounterMetricFamily("screening_retrainings", "Models that learnt from new results", value=float(n or 0))
