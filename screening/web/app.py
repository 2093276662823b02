"""The web application: REST API below /api/v1, pages, OPTIMADE below /optimade, /docs, /health, /metrics.

It keeps nothing between requests but connections and the counts of its rate limit: any number of processes may serve.
Parsing what people upload, training and scoring are the workers'. It refuses to start on a database of another version.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.staticfiles import StaticFiles

from screening import __version__
from screening.database.session import check_schema
from screening.settings import Settings, load_settings
from screening.web import api, documentation, health, login, metrics, pages
from screening.web.access import RateLimits
from screening.web.error_answers import add_handlers
from screening.web.middleware import DeclaredLength, EntityTags, RequestLog, Turns
from screening.web.optimade import routes
from screening.web.server import N_AT_ONCE, N_THREADS, Server
from screening.web.templating import STATIC

_DESCRIPTION = """Screens combinations of point defects in 2D materials. Energies are in eV, lengths in angstrom,
magnetisations in Bohr magnetons. Send a token as `Authorization: Bearer scr_...`; errors are problem+json, and say what
was found, what was expected and what to do."""
_PLOTLY = Path(str(files("plotly"))) / "package_data" / "plotly.min.js"


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for the services of these settings.

    Raises:
        SchemaError: the database is not at the newest migration.
        ServiceError: it does not answer, or is not known.
    """
    settings = settings or load_settings()
    server = Server.open(settings)
    try:
        check_schema(server.engine)
    except BaseException:
        server.engine.dispose()
        raise

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = N_THREADS
        yield
        server.engine.dispose()

    app = FastAPI(
        title="screening", version=__version__, description=_DESCRIPTION, lifespan=lifespan, docs_url=None,
        redoc_url=None, telemetry={"tracing": False},
    )  # fmt: skip
    app.state.server = server
    app.state.limits = RateLimits(settings.web_rate)
    add_handlers(app)
    _add_middleware(app, settings)
    _add_routes(app)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """From the inside out."""
    app.add_middleware(EntityTags)
    if origins := [origin.strip() for origin in settings.web_origins.split(",") if origin.strip()]:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match"],
            expose_headers=["ETag"],
        )  # fmt: skip
    app.add_middleware(Turns, at_once=N_AT_ONCE)
    longest = int(settings.web_upload_mb * 1e6)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=longest)
    app.add_middleware(DeclaredLength, longest=longest)
    app.add_middleware(RequestLog)


def _add_routes(app: FastAPI) -> None:
    for module in (health, metrics, login, documentation, api, routes, pages):
        app.include_router(module.router)

    @app.get("/static/plotly.min.js", include_in_schema=False)
    def plotly_script() -> FileResponse:
        """The script of the wheel of plotly."""
        return FileResponse(_PLOTLY, headers={"cache-control": "max-age=86400"})

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
