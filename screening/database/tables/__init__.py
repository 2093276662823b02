"""Every table, in the order of the data flow: hosts, levels of theory, configurations and search spaces (materials),
models, campaigns with candidates and their predictions, rankings, rounds with calculations and results, loops, and
the web server's own.

Units: eV, angstrom, Bohr magneton. Rows are the truth: a unit of work (a chunk, a training, a calculation) is a
row with a state and a lease, and its results are committed together with its state.
The code of a defect type, ``128 * Z_removed + Z_added``, is its primary key, so that arrays of defect types
can be read without a look-up.
"""

from __future__ import annotations

from screening.database.tables.base import PROPERTY_COMMENTS, Leased, Table
from screening.database.tables.campaigns import (
    Campaign,
    CampaignBins,
    CampaignCorrelation,
    Candidate,
    Chunk,
    ChunkCount,
    ChunkHistogram,
)
from screening.database.tables.loops import Design, Loop, LoopStep
from screening.database.tables.materials import (
    Arrangement,
    ChemicalPotential,
    Composition,
    Configuration,
    DefectType,
    Host,
    LevelOfTheory,
    SearchSpace,
    SearchSpaceCount,
    SourceFile,
    Supercell,
)
from screening.database.tables.models import (
    IntervalMultiple,
    ModelComparison,
    ModelComparisonError,
    ModelLine,
    ModelMetric,
    Promotion,
    TrainedModel,
)
from screening.database.tables.rankings import Ranking, RankingCampaign, RankingReference, RankingRow, RankingValue
from screening.database.tables.results import (
    Calculation,
    CalculationFailure,
    CalculationResult,
    ModelTrainingResult,
    QuarantinedResult,
    ResultPrediction,
    Round,
    ValidationPrediction,
    WatchedFile,
    WatchedFolder,
)
from screening.database.tables.web import AccessToken, IdempotentRequest, Login, Upload

__all__ = [
    "PROPERTY_COMMENTS",
    "AccessToken",
    "Arrangement",
    "Calculation",
    "CalculationFailure",
    "CalculationResult",
    "Campaign",
    "CampaignBins",
    "CampaignCorrelation",
    "Candidate",
    "ChemicalPotential",
    "Chunk",
    "ChunkCount",
    "ChunkHistogram",
    "Composition",
    "Configuration",
    "DefectType",
    "Design",
    "Host",
    "IdempotentRequest",
    "IntervalMultiple",
    "Leased",
    "LevelOfTheory",
    "Login",
    "Loop",
    "LoopStep",
    "ModelComparison",
    "ModelComparisonError",
    "ModelLine",
    "ModelMetric",
    "ModelTrainingResult",
    "Promotion",
    "QuarantinedResult",
    "Ranking",
    "RankingCampaign",
    "RankingReference",
    "RankingRow",
    "RankingValue",
    "ResultPrediction",
    "Round",
    "SearchSpace",
    "SearchSpaceCount",
    "SourceFile",
    "Supercell",
    "Table",
    "TrainedModel",
    "Upload",
    "ValidationPrediction",
    "WatchedFile",
    "WatchedFolder",
]
