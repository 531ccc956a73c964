"""Everything that can be known to be wrong with a run before it begins, reported together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from securetune.artifacts import RobustModules, read_artifact
from securetune.config import EvaluationSettings, RunConfig
from securetune.data.conversations import read_conversations
from securetune.data.prompts import ProbeSet, find_overlap, load_probes
from securetune.errors import ConfigError, InputError, ProblemList
from securetune.evaluation import EvaluationPlan, check_evaluation
from securetune.models import check_model, check_same_model_in_files
from securetune.pipeline.folder import RunFolder, check_folder
from securetune.pipeline.jobs import needs_manifest, needs_search
from securetune.training import setting_problems


def check_run(config: RunConfig, folder: RunFolder) -> EvaluationSettings:
    """Check model, prompts, data, methods, evaluation and output folder; takes seconds, loads no weights.

    Returns:
        The evaluation settings with the defaults of the start model filled in. The tuned models are evaluated with
        them too: they lie in folders, and a folder's name says nothing of the world that it belongs to.

    Raises:
        InputError: With every mistake found.
    """
    problems = ProblemList()
    model_problems = check_model(config.model)
    problems.found += model_problems
    probes: ProbeSet | None = None
    with problems.collect():
        probes = load_probes(config.probes, config.model.name)
    plan: EvaluationPlan | None = None
    with problems.collect():
        plan = check_evaluation(config.evaluation, config.model)
    with problems.collect():
        read_conversations(config.data)
    for label in config.methods:
        with problems.collect():
            _check_method(config, label, model_is_usable=not model_problems)
    if probes is not None and plan is not None:
        problems.found += _shared_prompts(probes, plan)
    with problems.collect():
        check_folder(folder, config)
    problems.raise_if_any(InputError)
    assert plan is not None
    return plan.settings


def _check_method(config: RunConfig, label: str, model_is_usable: bool) -> None:
    """Check one method's settings, and its manifest unless the search is still to make it."""
    settings = config.training_for(label, config.seeds[0])
    problems = ProblemList()
    with problems.collect():
        if needs_manifest(settings) and not needs_search(settings):
            manifest = read_artifact(Path(settings.modules), RobustModules)
            if model_is_usable:
                check_same_model_in_files(manifest.model, config.model, settings.modules)
    problems.found += setting_problems(settings, config.model)
    problems.found[:] = [f"methods.{label}: {problem}" for problem in problems.found]
    problems.raise_if_any(ConfigError)


def _shared_prompts(probes: ProbeSet, plan: EvaluationPlan) -> Iterator[str]:
    """Refuse prompts that choose the modules and then judge the result: the test would not be held out."""
    used = [*probes.fit_harmful, *probes.fit_harmless, *probes.score_harmful, *probes.score_harmless]
    for suite in plan.suites:
        pairs = find_overlap(used, suite.prompts)
        if pairs:
            yield (
                f"suite {suite.name}: must share no prompt with the probes; {len(pairs)} of {len(suite.prompts)} do, "
                f'such as "{pairs[0][1].text[:80]}"'
            )
