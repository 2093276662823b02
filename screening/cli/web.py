"""The web server and the tokens of those who use it: serve, token."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table
from screening.cli.project import Project
from screening.errors import InputError

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}

tokens = typer.Typer(help="Tokens of the web server: create, list, revoke.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(serve)
    tokens.command("create")(create_token)
    tokens.command("list")(list_tokens)
    tokens.command("revoke")(revoke_token)
    app.add_typer(tokens, name="token")


def serve(
    host: Annotated[
        str | None, typer.Option(help="Interface to listen on; SCREENING_WEB_ADDRESS if not given.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; SCREENING_WEB_PORT, else 8000.")] = None,
) -> None:
    """Serve the pages, the REST API and OPTIMADE in this terminal; `screening up` does so in the background."""
    import uvicorn

    from screening.web.app import create_app

    settings = Project().settings
    app = create_app(settings)
    uvicorn.run(
        app, host=host or settings.web_address, port=port or settings.web_port or 8000, access_log=False,
        log_config=_LOGGING, timeout_graceful_shutdown=5, server_header=False,
    )  # fmt: skip


def create_token(
    name: Annotated[str, typer.Argument(help="Of the person or program that will have it.")],
    role: Annotated[str, typer.Option(help="read, submit (and read) or admin (and submit).")] = "read",
    expires: Annotated[
        str | None, typer.Option(help="After this time it is refused: 12h, 90d, 8w; never if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token for the web server. It is shown this once; the database keeps a digest."""
    from screening.database.tokens import add_token

    project = Project()
    with project.transaction() as session:
        token = add_token(session, name, role, expires=_time(expires) if expires else None)
    url = _url(project)
    if as_json:
        print_json({"name": name, "role": role, "token": token, "url": url})
        return
    print(token)
    note(f"screening: this token is shown only now; log in with it at {url}/login, or send it as Authorization: Bearer")


def list_tokens(as_json: AsJson = False) -> None:
    """List who may use the web server."""
    from screening.database.tokens import list_tokens as find

    with Project().transaction() as session:
        rows = list(find(session))
    if as_json:
        print_json(rows)
        return
    columns = ["name", "role", "created_at", "expires_at", "revoked_at", "last_used_at"]
    shown = [[f"{row[c]:%Y-%m-%d %H:%M}" if hasattr(row[c], "year") else row[c] for c in columns] for row in rows]
    print_table([column.removesuffix("_at").replace("_", " ") for column in columns], shown)


def revoke_token(name: Annotated[str, typer.Argument(help="As `token list` names it.")]) -> None:
    """Refuse a token from now on, and log out the browsers that used it."""
    from screening.database.tokens import revoke_token as revoke

    with Project().transaction() as session:
        revoke(session, name)
    print(f"the token of {name} is refused from now on")


def _time(text: str) -> timedelta:
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in _UNITS:
        raise InputError(f"--expires {text!r} cannot be read; write 12h, 90d or 8w")
    return timedelta(**{_UNITS[unit]: int(number)})


def _url(project: Project) -> str:
    """Where the web server is, or will be."""
    from screening.services.state import read_state

    settings = project.settings
    known = read_state(settings.home).get("web_url")
    return str(known or f"http://{settings.web_address}:{settings.web_port or 8000}")


_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"screening": {"level": "INFO"}, "uvicorn": {"level": "INFO"}},
}
