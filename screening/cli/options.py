"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
HostName = Annotated[str, typer.Option("--host", help="Name of the host: MoS2.")]
SupercellText = Annotated[str, typer.Option("--supercell", help="Repeats of the unit cell: 8x8, or 3x3x2 for bulk.")]
SomeSupercell = Annotated[
    str | None, typer.Option("--supercell", help="Supercell of the host; needed only where it has several.")
]
Types = Annotated[str, typer.Option("--types", help="Defect types: v_S,Se_S,v_Mo,W_Mo.")]
MaxDefects = Annotated[
    int | None, typer.Option("--max-defects", help="Largest number of defects; that of --composition if given.")
]
MinDefects = Annotated[int, typer.Option("--min-defects", help="Smallest number of defects.")]
CompositionText = Annotated[str | None, typer.Option("--composition", help="Exactly this composition: v_S:2,Se_S:1.")]
CountLimits = Annotated[
    list[str] | None,
    typer.Option("--limit", help="Least and largest number of a type: v_S:0-2,Se_S:1-3; may be given several times."),
]
RequiredTypes = Annotated[
    list[str] | None, typer.Option("--require", help="Types of which at least one occurs: v_Mo; several with commas.")
]
MinSeparation = Annotated[
    float | None, typer.Option("--min-separation", help="Least distance between any two defects, angstrom.")
]
MaxSeparation = Annotated[
    float | None, typer.Option("--max-separation", help="Largest distance between any two defects, angstrom.")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Name of a model (its version in production), or of a version: first@2; the last promoted if not given.",
    ),
]
LevelName = Annotated[str | None, typer.Option("--level", help="Name of a level of theory.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the workers, or only queue the work.")]
