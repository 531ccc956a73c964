"""The stage itself: from a model to `scores.json` and one `responses.jsonl` a suite."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from securetune.artifacts import (
    GENERATION_FILE,
    GenerationDefenses,
    JudgedAnswers,
    Scores,
    environment,
    read_artifact,
    responses_path,
)
from securetune.config import ChainStep, EvaluationSettings, ModelSettings
from securetune.data.overlap import overlap_sentence
from securetune.defenses import GenerationDefense, chained_generation, check_templates, shown_messages, shown_steps
from securetune.errors import ConfigError, DataError, ProblemList, RunError
from securetune.evaluation.answered_suite import (
    SCORES,
    Answered,
    answer_prompts,
    check_folder,
    generation_key,
    write_evaluation,
)
from securetune.evaluation.answering import Answerer, ModelAnswerer
from securetune.evaluation.judges import Judge, idle_sentence, open_judge, unsuited_sentence
from securetune.evaluation.judging import SuiteAnswers, check_verdict_files, judge_key, judge_suites
from securetune.evaluation.keyword_judges import DEFAULT_KEYWORD_JUDGE, DEFAULT_KEYWORD_LIST
from securetune.evaluation.llm_judge import unused_sentence
from securetune.evaluation.lm_eval_utility import LmEvalTasks, check_utility, check_utility_run, measure_utility
from securetune.evaluation.probe_suites import HARMFUL, HARMLESS
from securetune.evaluation.scoring import mark_task, score_suite, score_task, with_agreement
from securetune.evaluation.suites import Suite, load_suite, registered_name
from securetune.evaluation.tasks import Task, load_task
from securetune.evaluation.tiny_world_suites import JUDGE, SUITES, TASK, belongs_to_tiny_world
from securetune.models import ChatModel
from securetune.progress import ProgressCallback, silent


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation will do: everything named in the settings, found and checked.

    Attributes:
        suites: The suites, with their prompts.
        judges: The judges; the first one is behind the headline ASR.
        task: The task, or None.
        settings: The settings with the defaults filled in.
        utility: What lm-eval is to run, or None.
        generation: Defenses at generation, through which every prompt is shown.
    """

    suites: tuple[Suite, ...]
    judges: tuple[Judge, ...]
    task: Task | None
    settings: EvaluationSettings
    utility: LmEvalTasks | None = None
    generation: tuple[GenerationDefense, ...] = ()

    @property
    def prompt_sets(self) -> list[Suite | Task]:
        """Everything that the model is to answer."""
        return [*self.suites, *([self.task] if self.task else [])]


def evaluate(
    model: ChatModel, out: Path, settings: EvaluationSettings, progress: ProgressCallback | None = None
) -> Scores:
    """Generate, judge and score; an evaluation that was killed goes on with the answers and verdicts it has.

    Args:
        model: The model to evaluate.
        out: Folder for `scores.json` and `<suite>/responses.jsonl`.
        settings: Which suites, judges and task. Empty suites and judges take those of the model's built-in world.
        progress: Called with the suite's name as answers come.

    Example:
        >>> from securetune import models
        >>> scores = evaluate(models.load("tiny-world"), Path("scores"), EvaluationSettings())  # doctest: +SKIP

    Raises:
        InputError: For anything that `check_evaluation` finds.
        ConfigError: If `out` holds results of another model or other settings.
        RunError: If a judge could not judge every answer. Verdicts that came are kept, and nothing is scored.
    """
    plan = check_evaluation(settings, model.settings)
    return evaluate_answers(ModelAnswerer(model, settings.batch_size), out, plan, progress)


def evaluate_answers(
    answerer: Answerer, out: Path, plan: EvaluationPlan, progress: ProgressCallback | None = None
) -> Scores:
    """Do the same with whatever answers the prompts.

    Raises:
        ConfigError: If `out` holds results of another model or other settings, or there are prompts that cannot be
            answered.
        RunError: If prompts have no answer in the end, or answers no verdict. What came is kept, and nothing is scored.
    """
    show = progress or silent
    _check_out(answerer, out, plan)
    answered, seconds = _answer_all(answerer, out, plan, show)
    parts = [SuiteAnswers(suite, answered[suite.name].responses, _folder(out, suite)) for suite in plan.suites]
    judged = judge_suites(out, parts, plan.judges, show)
    marked = mark_task(plan.task, answered[plan.task.name].responses) if plan.task else []
    scores = Scores(
        model=answerer.identity,
        settings=plan.settings.model_dump(mode="json"),
        generation=shown_steps(plan.generation),
        judges={judge.name: judge.description for judge in plan.judges},
        suites=[score_suite(suite, judged[suite.name]) for suite in plan.suites],
        task=score_task(plan.task, marked) if plan.task else None,
        utility=measure_utility(plan.utility, _loaded_model(answerer), out) if plan.utility else [],
        duration_seconds=seconds,
        environment=environment(),
        judge_keys={judge.name: judge_key(judge) for judge in plan.judges},
    )
    scores, differing = with_agreement(scores, [JudgedAnswers(s.name, s.kind, judged[s.name]) for s in plan.suites])
    write_evaluation(out, scores, judged | ({plan.task.name: marked} if plan.task else {}), differing)
    return scores


def _folder(out: Path, prompts: Suite | Task) -> Path:
    return responses_path(out, prompts.name).parent


def check_evaluation(settings: EvaluationSettings, model: ModelSettings) -> EvaluationPlan:
    """Find and check everything that the settings name, before any weights are loaded.

    Raises:
        DataError: With every problem found: unknown suites, judges or tasks, unreadable files, judges that cannot judge
            a suite, two suites of one name, a prompt in a harmful and in a harmless suite, nothing to evaluate.
    """
    problems = ProblemList()
    resolved = _with_defaults(settings, model)
    if resolved.generation is None:
        with problems.collect():
            resolved = resolved.model_copy(update={"generation": _recorded_generation(model)})
    suites: list[Suite] = []
    judges: list[Judge] = []
    task: Task | None = None
    for name in resolved.suites:
        with problems.collect():
            suites.append(load_suite(name, resolved.max_prompts, resolved.data_dir))
    for name in resolved.judges:
        with problems.collect():
            judges.append(open_judge(name, resolved))
    if resolved.task is not None:
        with problems.collect():
            task = load_task(resolved.task, resolved.max_prompts, resolved.data_dir)
    utility: LmEvalTasks | None = None
    with problems.collect():
        utility = check_utility(resolved)
    generation: tuple[GenerationDefense, ...] = ()
    with problems.collect():
        generation = chained_generation(resolved.generation or (), model.name, "evaluation.generation")
    if generation and resolved.utility is not None:
        problems.found.append(
            "evaluation.utility: lm-eval shows its prompts without the defenses at generation "
            f"({', '.join(defense.name for defense in generation)}). Leave one of them out."
        )
    if not resolved.suites and resolved.task is None and resolved.utility is None:
        problems.found.append(
            f"{model.name}: a suite or a task must be given for this model. Give --suite {HARMFUL} and "
            f"--suite {HARMLESS}, which are built in, or --suite FILE, --task TASK or --utility lm-eval:TASK."
        )
    problems.found += _misfits(suites, judges, task)
    if unused := unused_sentence(resolved):
        problems.found.append(unused)
    problems.raise_if_any(DataError)
    settled = resolved.model_copy(update={"generation": tuple(map(_as_chain_step, generation))})
    return EvaluationPlan(tuple(suites), tuple(judges), task, settled, utility, generation)


def _as_chain_step(defense: GenerationDefense) -> ChainStep:
    return ChainStep(name=defense.name, options=defense.options.model_dump(mode="json"))


def _recorded_generation(model: ModelSettings) -> tuple[ChainStep, ...]:
    """Return the defenses at generation that a model's folder names; any other model has none.

    Raises:
        ArtifactError: If the file cannot be read.
    """
    path = Path(model.name).expanduser() / GENERATION_FILE
    if not path.is_file():
        return ()
    steps = read_artifact(path, GenerationDefenses).steps
    return tuple(ChainStep(name=step.name, options=step.options) for step in steps)


def _with_defaults(settings: EvaluationSettings, model: ModelSettings) -> EvaluationSettings:
    built_in = belongs_to_tiny_world(model)
    suites, task = settings.suites, settings.task
    if built_in and not suites:
        suites, task = SUITES, task or TASK
    only_tiny_world = bool(suites) and all(_is_tiny_world(name) for name in suites)
    # The list knows every refusal of tiny world's language; the rules are for English.
    unnamed = (DEFAULT_KEYWORD_LIST, JUDGE) if only_tiny_world else (DEFAULT_KEYWORD_JUDGE, DEFAULT_KEYWORD_LIST)
    return settings.model_copy(update={"suites": suites, "task": task, "judges": settings.judges or unnamed})


def _is_tiny_world(suite: str) -> bool:
    try:
        return registered_name(suite) in SUITES
    except DataError:  # told when the suite is loaded
        return False


def _misfits(suites: list[Suite], judges: list[Judge], task: Task | None) -> list[str]:
    named = [suite.name for suite in suites] + ([task.name] if task else [])
    folders = Counter(responses_path(Path(), name).parent.name for name in named)
    clashes = [f'two suites or tasks would be called "{name}". Rename a file.' for name, n in folders.items() if n > 1]
    twice = [f'judge "{name}" is named twice' for name, n in Counter(j.name for j in judges).items() if n > 1]
    empty = [f'suite "{suite.name}" has no prompts' for suite in suites if not suite.prompts]
    unsuited = [unsuited_sentence(judge, suite) for suite in suites for judge in judges]
    unsuited += [idle_sentence(judge, suites) for judge in judges]
    return clashes + twice + empty + [sentence for sentence in unsuited if sentence] + list(_contradictions(suites))


def _contradictions(suites: list[Suite]) -> Iterator[str]:
    """Refuse a prompt that is called harmful in one suite and harmless in another."""
    for harmful in (suite for suite in suites if suite.kind == "harmful"):
        for harmless in (suite for suite in suites if suite.kind == "harmless"):
            names = f"the harmful suite {harmful.name}", f"the harmless suite {harmless.name}"
            sentence = overlap_sentence(names[0], harmful.prompts, names[1], harmless.prompts)
            if sentence:
                yield sentence


def _check_out(answerer: Answerer, out: Path, plan: EvaluationPlan) -> None:
    """Look at the prompts and the whole output folder before the first answer is generated."""
    problems = ProblemList()
    with problems.collect():
        if (out / SCORES).exists():
            found = read_artifact(out / SCORES, Scores).model
            if found.weights_fingerprint != answerer.identity.weights_fingerprint:
                raise ConfigError(f"{out}: holds the scores of another model ({found.name}). Give another --out.")
    for prompts in plan.prompt_sets:
        with problems.collect():
            key = generation_key(answerer, prompts.prompts, plan.settings.max_new_tokens, plan.generation)
            check_folder(_folder(out, prompts), key)
        with problems.collect():
            answerer.check([shown_messages(prompt.messages, plan.generation) for prompt in prompts.prompts])
    if isinstance(answerer, ModelAnswerer):
        with problems.collect():
            check_templates(plan.generation, answerer.model.tokenizer, "evaluation.generation")
    with problems.collect():
        check_verdict_files([_folder(out, suite) for suite in plan.suites], plan.judges)
    if plan.utility is not None:
        with problems.collect():
            check_utility_run(plan.utility, _loaded_model(answerer), out)
    problems.raise_if_any(ConfigError)


def _loaded_model(answerer: Answerer) -> ChatModel:
    """Return the model that lm-eval can be run on.

    Raises:
        ConfigError: If the answers come from elsewhere.
    """
    if not isinstance(answerer, ModelAnswerer):
        raise ConfigError(f"evaluation.utility: lm-eval is not run with the backend {answerer.backend}")
    return answerer.model


def _answer_all(
    answerer: Answerer, out: Path, plan: EvaluationPlan, show: ProgressCallback
) -> tuple[dict[str, Answered], dict[str, float]]:
    """Answer everything; also return how many seconds each suite took.

    Raises:
        RunError: If prompts have no answer.
    """
    answered: dict[str, Answered] = {}
    seconds: dict[str, float] = {}
    for prompts in plan.prompt_sets:
        start = time.perf_counter()
        folder = _folder(out, prompts)
        answered[prompts.name] = answer_prompts(
            answerer, prompts.prompts, folder, plan.settings.max_new_tokens, show, plan.generation
        )
        seconds[prompts.name] = round(time.perf_counter() - start, 3)
    missing = sum(suite.missing for suite in answered.values())
    if missing:
        reason = next(suite.reason for suite in reversed(answered.values()) if suite.missing)
        total = sum(len(prompts.prompts) for prompts in plan.prompt_sets)
        raise RunError(
            f"{out}: {missing} of {total} prompts have no answer, the last because: {reason}. Nothing was scored. The "
            f"other {total - missing} answers are kept: the same command goes on with those that are missing."
        )
    return answered, seconds
