"""The pipeline: the only place that knows all stages."""

from securetune.pipeline.folder import RunFolder
from securetune.pipeline.running import run

__all__ = ["RunFolder", "run"]
