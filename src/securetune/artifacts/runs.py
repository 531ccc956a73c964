"""What the pipeline writes: `run.json`, how far a run is."""

from __future__ import annotations

from typing import Literal

from securetune.artifacts.estimates import Artifact

StageState = Literal["waiting", "running", "complete", "failed"]


class StageRecord(Artifact):
    """How far one stage of a run is.

    Attributes:
        state: `running` in the file of a run that was killed means: begun, and gone on with at the next start.
        seconds: Wall time spent on it so far, over all starts.
        error: Why it failed, or None.
    """

    state: StageState = "waiting"
    seconds: float = 0.0
    error: str | None = None


class RunRecord(Artifact):
    """`run.json`: what a run folder holds, and how far it is.

    Attributes:
        config_hash: Hash of the resolved configuration, without `workers`, which changes no result.
        input_hashes: Hash of each input: `data`, `probes`, `model`, `task`, suites.
        status: `interrupted` and `running` runs go on when started again; `failed` ones try the failed cells again.
        seconds: Wall time of the whole run so far, over all starts.
        environment: Package versions and hardware.
        stages: `start`, `analysis`, `search`, `data/<defenses>`, `methods/<label>/seed-<n>`, `report`.
    """

    format: Literal["securetune.run/1"] = "securetune.run/1"
    config_hash: str
    input_hashes: dict[str, str]
    status: Literal["running", "complete", "failed", "interrupted"] = "running"
    seconds: float = 0.0
    environment: dict[str, str]
    stages: dict[str, StageRecord]
