"""The command `screening`.

Each module holds the commands of one part: `services`, `hosts`, `searches`, `models`, `designs`, `loop` (the demos).
A command opens its transactions, hands work to the workers and waits for it. Everything heavy is imported by the
command that needs it, so that `screening --help` answers at once.
"""

from __future__ import annotations

import sys

import typer

import screening.cli.designs as designs
import screening.cli.hosts as hosts
import screening.cli.loop as loop
import screening.cli.models as models
import screening.cli.searches as searches
import screening.cli.services as services
from screening import __version__
from screening.errors import ScreeningError

app = typer.Typer(
    name="screening",
    help="Screen combinations of point defects in 2D materials: enumerate, learn, rank, calculate, learn again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (services, hosts, searches, models, designs, loop):
    module.add_commands(app)


@app.callback(invoke_without_command=True)
def _version(
    ctx: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and stop.")
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: errors that the platform raises on purpose end as one message and exit code 1."""
    try:
        app()
    except ScreeningError as error:
        print(f"screening: {error}", file=sys.stderr)
        sys.exit(1)
