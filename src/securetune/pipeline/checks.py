"""Everything that can be known to be wrong with a run before it begins, reported together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from securetune.artifacts import RobustModules, read_artifact
from securetune.config import (
    OWN_SEARCH,
    EvaluationSettings,
    ModelSettings,
    ProbeSettings,
    RunConfig,
    TrainConfig,
    TrainingSettings,
)
from securetune.data.conversations import Conversation, read_conversations
from securetune.data.overlap import overlap_sentence
from securetune.data.prompts import ProbeSet, Prompt, load_probes
from securetune.defenses import defense_of
from securetune.errors import ConfigError, InputError, ProblemList
from securetune.evaluation import EvaluationPlan, Suite, check_evaluation, load_suite
from securetune.models import check_model, check_same_model_in_files, is_quantized
from securetune.pipeline.chaining import check_chain, check_generation, check_shown
from securetune.pipeline.folder import RunFolder, check_folder
from securetune.pipeline.jobs import needs_manifest, needs_search
from securetune.pipeline.preparing import check_before, prompts_of_data
from securetune.training import setting_problems
from securetune.training.adapters import check_adapters
from securetune.training.robust_choice import require_sensitivities


def check_run(config: RunConfig, folder: RunFolder | None) -> EvaluationSettings:
    """Check model, prompts, data, methods, evaluation and output folder; takes seconds, loads no weights.

    Args:
        config: The run.
        folder: Where it is to be done; None: not said yet.

    Returns:
        The evaluation settings with the defaults of the start model filled in. The tuned models are evaluated with
        them too: they lie in folders, and a folder's name says nothing of the world that it belongs to.

    Raises:
        InputError: With every mistake found.
    """
    problems = ProblemList()
    model_problems = check_model(config.model)
    problems.found += model_problems
    if not model_problems:
        with problems.collect():
            check_weights_can_be_perturbed(config.model)
    probes: ProbeSet | None = None
    with problems.collect():
        probes = load_probes(config.probes, config.model.name)
    plan: EvaluationPlan | None = None
    with problems.collect():
        plan = check_evaluation(config.evaluation, config.model)
        check_shown(plan.generation, config.model, "evaluation.generation")
    if config.selection is not None:
        problems.found += _selection_problems(config, plan)
    rows: Sequence[Conversation] = ()
    with problems.collect():
        rows = read_conversations(config.data)
    suites = plan.suites if plan is not None else _readable_suites(config.evaluation)
    judged_by = [*suites, *_selection_suites(config)]
    for label in config.methods:
        with problems.collect():
            _check_method(config, label, model_is_usable=not model_problems, rows=len(rows) or None)
        problems.found += _prompts_of_method(config, label, judged_by)
        if folder is not None and not model_problems:  # a plan, which has no folder, makes the adapters itself
            with problems.collect():
                check_adapters(config.training_for(label, config.seeds[0]), config.model)
    if probes is not None:
        problems.found += _shared_prompts(probes, config.probes, suites)
    if folder is not None:
        with problems.collect():
            check_folder(folder, config)
    problems.raise_if_any(InputError)
    assert plan is not None
    return plan.settings


def check_weights_can_be_perturbed(model: ModelSettings) -> None:
    """Refuse to analyze or search a quantized model.

    Raises:
        ConfigError: If it is one: packed weights are numbers of another kind, to which no noise can be added.
    """
    if is_quantized(model):
        raise ConfigError(
            f"{model.name}: is quantized, and packed weights cannot be perturbed. Analyze and search the model in full "
            "precision, then train the quantized one with `securetune train` and the manifest found."
        )


def check_train(config: TrainConfig) -> None:
    """Check model, data, method and manifest of one training without its folder; takes seconds, loads no weights.

    A set that the search is still to find is no mistake here: nothing is trained.

    Raises:
        InputError: With every mistake found.
    """
    problems = ProblemList()
    model_problems = check_model(config.model)
    problems.found += model_problems
    rows: Sequence[Conversation] = ()
    with problems.collect():
        rows = read_conversations(config.data)
    with problems.collect():
        _check_manifest(config.training, config.model, model_is_usable=not model_problems)
    problems.found += setting_problems(config.training, config.model)
    problems.found += _chain_problems(config.training, config.model, not model_problems, len(rows) or None)
    problems.raise_if_any(InputError)


def _chain_problems(
    settings: TrainingSettings, model: ModelSettings, model_is_usable: bool, rows: int | None
) -> list[str]:
    """Check what is chained around a training."""
    problems = ProblemList()
    with problems.collect():
        check_before(settings.before, model, rows)
    if model_is_usable:
        with problems.collect():
            check_chain(settings, model)
    with problems.collect():
        check_generation(settings, model)
    return problems.found


def _check_manifest(settings: TrainingSettings, model: ModelSettings, model_is_usable: bool) -> None:
    """Check the method's name, and its manifest unless the search is still to make it."""
    if needs_manifest(settings) and not needs_search(settings):
        manifest = read_artifact(Path(settings.modules), RobustModules)
        require_sensitivities(manifest, defense_of(settings), settings.modules)
        if model_is_usable:
            check_same_model_in_files(manifest.model, model, settings.modules)


def _check_method(config: RunConfig, label: str, model_is_usable: bool, rows: int | None) -> None:
    """Check one method's settings, its chain and its manifest."""
    settings = config.training_for(label, config.seeds[0])
    problems = ProblemList()
    with problems.collect():
        _check_manifest(settings, config.model, model_is_usable)
    problems.found += setting_problems(settings, config.model)
    with problems.collect():
        if OWN_SEARCH in config.methods[label] and not needs_search(settings):
            raise ConfigError(f"{OWN_SEARCH}: does nothing, as no modules are searched for it. Leave it out.")
    problems.found += _chain_problems(settings, config.model, model_is_usable, rows)
    for section in ("evaluation", "selection") if settings.generation else ():
        if getattr(getattr(config, section), "generation", None) is not None:
            problems.found.append(
                f"generation and {section}.generation both say what the tuned model is shown; give one of them"
            )
    problems.found[:] = [f"methods.{label}: {problem}" for problem in problems.found]
    problems.raise_if_any(ConfigError)


def _prompts_of_method(config: RunConfig, label: str, suites: Iterable[Suite]) -> list[str]:
    """Refuse prompts that a method, or a defense on its data, looks at and that judge it afterwards."""
    problems = ProblemList()
    with problems.collect():
        settings = config.training_for(label, config.seeds[0])
        named: list[tuple[str, Sequence[Prompt]]] = []
        with suppress(InputError):  # an unknown method or option, and what cannot be read, have been told
            named.append(("the method's prompts", defense_of(settings).prompts_used(config.model.name)))
        with suppress(InputError):  # what is wrong with the chain has been told
            named += [(f"the prompts of {name}", used) for name, used in prompts_of_data(settings.before, config.model)]
        for (name, used), suite in itertools.product(named, suites):
            if sentence := overlap_sentence(name, used, f"the suite {suite.name}", suite.prompts):
                problems.found.append(sentence)
    return [f"methods.{label}: {problem}" for problem in problems.found]


def _selection_problems(config: RunConfig, plan: EvaluationPlan | None) -> Iterator[str]:
    """Check the evaluation by which settings are chosen, and that it shares no prompt with the reported one."""
    assert config.selection is not None
    problems = ProblemList()
    with problems.collect():
        chosen_on = check_evaluation(config.selection, config.model)
        for here in chosen_on.prompt_sets:
            for there in plan.prompt_sets if plan is not None else ():
                names = f"the selection's {here.name}", f"the reported {there.name}"
                if sentence := overlap_sentence(names[0], here.prompts, names[1], there.prompts):
                    problems.found.append(sentence)
    yield from (f"selection: {problem}" for problem in problems.found)


def _selection_suites(config: RunConfig) -> list[Suite]:
    return _readable_suites(config.selection) if config.selection is not None else []


def _readable_suites(settings: EvaluationSettings) -> list[Suite]:
    """Load what can be loaded of the named suites; what is wrong with the others has been told."""
    suites = []
    for name in settings.suites:
        with ProblemList().collect():
            suites.append(load_suite(name, settings.max_prompts, settings.data_dir))
    return suites


def _shared_prompts(probes: ProbeSet, settings: ProbeSettings, suites: Iterable[Suite]) -> Iterator[str]:
    """Refuse prompts that choose the modules and then judge the result: the test would not be held out."""
    used = {
        f"the harmful probes ({settings.harmful or 'built in'})": [*probes.fit_harmful, *probes.score_harmful],
        f"the harmless probes ({settings.harmless or 'built in'})": [*probes.fit_harmless, *probes.score_harmless],
    }
    for suite in suites:
        for name, prompts in used.items():
            sentence = overlap_sentence(name, prompts, f"the suite {suite.name}", suite.prompts)
            if sentence:
                yield sentence
