"""Fine-tune a chat model without losing its safety.

The public functions are imported when they are first used, so that `import securetune` (and the command line's help)
does not wait for torch.

Example:
    >>> import securetune
    >>> "run" in dir(securetune)
    True
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from securetune.analysis import analyze_robustness
    from securetune.evaluation.evaluate import evaluate
    from securetune.evaluation.rejudging import judge_saved_responses
    from securetune.pipeline import run
    from securetune.pipeline.chaining import train
    from securetune.pipeline.patching import patch_weights
    from securetune.pipeline.preparing import prepare_data
    from securetune.pipeline.secure_trainer import SecureSFTTrainer
    from securetune.reporting import write_report
    from securetune.search import search_robust_modules
    from securetune.training.secure_config import SecureSFTConfig

# No telemetry, also from the libraries below; it must be set before they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOMES = {
    "SecureSFTConfig": "securetune.training.secure_config",
    "SecureSFTTrainer": "securetune.pipeline.secure_trainer",
    "analyze_robustness": "securetune.analysis",
    "evaluate": "securetune.evaluation",
    "judge_saved_responses": "securetune.evaluation",
    "patch_weights": "securetune.pipeline.patching",
    "prepare_data": "securetune.pipeline.preparing",
    "run": "securetune.pipeline",
    "search_robust_modules": "securetune.search",
    "train": "securetune.pipeline.chaining",
    "write_report": "securetune.reporting",
}

__all__ = [
    "SecureSFTConfig",
    "SecureSFTTrainer",
    "__version__",
    "analyze_robustness",
    "evaluate",
    "judge_saved_responses",
    "patch_weights",
    "prepare_data",
    "run",
    "search_robust_modules",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
