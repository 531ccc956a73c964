"""The files that stages hand to each other: their types, and how they are written so that half a file is never read.

A JSON artifact appears under its final name only when it is complete (written beside, flushed, then renamed). Each
carries a `format` string with a version; a file of another format is an `ArtifactError` with a sentence, not a crash.
"""

from securetune.artifacts.comparison import (
    Comparison,
    MethodComparison,
    MetricDifference,
    MetricSummary,
    UpdateNorms,
)
from securetune.artifacts.estimates import Artifact, MeanEstimate, ModelIdentity, RateEstimate
from securetune.artifacts.files import (
    ArtifactType,
    append_json_line,
    read_artifact,
    read_json,
    read_json_lines,
    write_bytes,
    write_json,
    write_text,
)
from securetune.artifacts.provenance import environment, sha256_files, sha256_json, sha256_text
from securetune.artifacts.robustness import (
    AnalysisControl,
    ClosedFormAgreement,
    ComparedSet,
    ModuleRobustness,
    RefusalOpenings,
    RobustModules,
    RobustnessReport,
    SearchStudy,
    SearchVariant,
    SelectedModule,
    parameter_path,
)
from securetune.artifacts.runs import RunRecord, StageRecord, StageState
from securetune.artifacts.scores import (
    AnswerProblem,
    AnswerProblems,
    Compliance,
    Response,
    Scores,
    SuiteScores,
    TaskScores,
    Verdict,
    responses_path,
)
from securetune.artifacts.training import (
    PhaseResult,
    TrainedGroup,
    TrainingData,
    TrainingInputs,
    TrainingResult,
    UpdateNorm,
    WeightUpdate,
)

__all__ = [
    "AnalysisControl",
    "AnswerProblem",
    "AnswerProblems",
    "Artifact",
    "ArtifactType",
    "ClosedFormAgreement",
    "ComparedSet",
    "Comparison",
    "Compliance",
    "MeanEstimate",
    "MethodComparison",
    "MetricDifference",
    "MetricSummary",
    "ModelIdentity",
    "ModuleRobustness",
    "PhaseResult",
    "RateEstimate",
    "RefusalOpenings",
    "Response",
    "RobustModules",
    "RobustnessReport",
    "RunRecord",
    "Scores",
    "SearchStudy",
    "SearchVariant",
    "SelectedModule",
    "StageRecord",
    "StageState",
    "SuiteScores",
    "TaskScores",
    "TrainedGroup",
    "TrainingData",
    "TrainingInputs",
    "TrainingResult",
    "UpdateNorm",
    "UpdateNorms",
    "Verdict",
    "WeightUpdate",
    "append_json_line",
    "environment",
    "parameter_path",
    "read_artifact",
    "read_json",
    "read_json_lines",
    "responses_path",
    "sha256_files",
    "sha256_json",
    "sha256_text",
    "write_bytes",
    "write_json",
    "write_text",
]
