"""The command `screening`.

Each module holds the commands of one part: `services`, `hosts`, `searches`, `campaigns`, `models`, `predictions`,
`evaluation`, `designs`, `calculations`, `loop` (the demos), `sql`, `exports`, `web`.
A command opens its transactions, hands work to the workers and waits for it. Everything heavy is imported by the
command that needs it, so that `screening --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn, cast

import typer
from typer.exceptions import TyperException

import screening.cli.calculations as calculations
import screening.cli.campaigns as campaigns
import screening.cli.designs as designs
import screening.cli.evaluation as evaluation
import screening.cli.exports as exports
import screening.cli.hosts as hosts
import screening.cli.loop as loop
import screening.cli.models as models
import screening.cli.predictions as predictions
import screening.cli.retraining as retraining
import screening.cli.searches as searches
import screening.cli.services as services
import screening.cli.sql as sql
import screening.cli.web as web
from screening import __version__
from screening.cli.output import print_json
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
for module in (
    services, hosts, searches, campaigns, models, retraining, predictions, evaluation, designs, calculations, loop,
    sql, exports, web,
):  # fmt: skip
    module.add_commands(app)


@app.callback(invoke_without_command=True)
def _version(
    ctx: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and stop.")
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: what the platform or the command line refuses ends as one message, with --json as one JSON object.

    Exit code 1, or 2 where the command line itself is wrong.
    """
    try:
        sys.exit(app(standalone_mode=False))
    except ScreeningError as error:
        print(f"screening: {error}", file=sys.stderr)
        _end(str(error), 1)
    except typer.Abort:
        print("screening: not confirmed; nothing was done", file=sys.stderr)
        _end("not confirmed; nothing was done", 1)
    except TyperException as error:
        if isinstance(error, typer.BadParameter) and not error.message:  # a missing option says what it is for
            error.message = getattr(error.param, "help", None) or ""
        cast(Any, error).show()  # with the usage; all that Typer raises has it, by a type that is private
        _end(error.format_message(), error.exit_code)


def _end(message: str, exit_code: int) -> NoReturn:
    """Exit; for a program, say why where it reads."""
    if "--json" in sys.argv:
        print_json({"error": message})
    sys.exit(exit_code)
