"""Settings: what they mean, how they are checked, and how a YAML file becomes settings.

Unknown keys, wrong types and values out of range are collected and reported together, each with its key path.
"""

from securetune.config.base import Fraction, PositiveInt, Settings
from securetune.config.chain import ChainParts, ChainStep
from securetune.config.checking import merge, validate
from securetune.config.endpoint import EndpointSettings, LlmJudgeSettings, ServerSettings
from securetune.config.experiment import (
    ExperimentConfig,
    MatchingSettings,
    Point,
    Scalar,
    check_experiment_config,
    load_experiment_config,
)
from securetune.config.experiment_data import ONLY, check_experiment_configs, load_experiment_configs
from securetune.config.files import nest, parse_overrides, read_yaml, write_yaml
from securetune.config.gate import LIMITS, GateConfig, MetricLimits, SuiteLimits, load_gate_config
from securetune.config.recipes import (
    OWN_SEARCH,
    AnalyzeConfig,
    EvaluateConfig,
    ExportConfig,
    JudgeConfig,
    ProtectConfig,
    RunConfig,
    SearchConfig,
    TrainConfig,
    check_run_config,
    load_plan_config,
    load_run_config,
    load_train_config,
)
from securetune.config.settings import (
    MODULE_SETS,
    AnalysisSettings,
    EvaluationSettings,
    LoraSettings,
    ModelSettings,
    OrderBy,
    ProbeSettings,
    SearchSettings,
    TrainingSettings,
)

__all__ = [
    "LIMITS",
    "MODULE_SETS",
    "ONLY",
    "OWN_SEARCH",
    "AnalysisSettings",
    "AnalyzeConfig",
    "ChainParts",
    "ChainStep",
    "EndpointSettings",
    "EvaluateConfig",
    "EvaluationSettings",
    "ExperimentConfig",
    "ExportConfig",
    "Fraction",
    "GateConfig",
    "JudgeConfig",
    "LlmJudgeSettings",
    "LoraSettings",
    "MatchingSettings",
    "MetricLimits",
    "ModelSettings",
    "OrderBy",
    "Point",
    "PositiveInt",
    "ProbeSettings",
    "ProtectConfig",
    "RunConfig",
    "Scalar",
    "SearchConfig",
    "SearchSettings",
    "ServerSettings",
    "Settings",
    "SuiteLimits",
    "TrainConfig",
    "TrainingSettings",
    "check_experiment_config",
    "check_experiment_configs",
    "check_run_config",
    "load_experiment_config",
    "load_experiment_configs",
    "load_gate_config",
    "load_plan_config",
    "load_run_config",
    "load_train_config",
    "merge",
    "nest",
    "parse_overrides",
    "read_yaml",
    "validate",
    "write_yaml",
]
