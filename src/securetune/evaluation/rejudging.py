"""Judging saved answers again: no model is loaded, and prompts come from the answers, so no data files are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from securetune.artifacts import JudgedAnswers, Response, Scores, read_artifact
from securetune.config import EvaluationSettings, merge, validate
from securetune.errors import InputError, ProblemList
from securetune.evaluation.answered_suite import SCORES, write_evaluation
from securetune.evaluation.judges import Judge, idle_sentence, open_judge, unsuited_sentence
from securetune.evaluation.judging import SuiteAnswers, check_verdict_files, judge_key, judge_suites
from securetune.evaluation.llm_judge import NAME as LLM_JUDGE
from securetune.evaluation.saved_answers import changed_verdicts, read_saved_suite
from securetune.evaluation.scoring import score_suite, with_agreement
from securetune.progress import ProgressCallback, silent

_OF_ANSWERING = (
    "suites",
    "generation",
    "data_dir",
    "task",
    "utility",
    "max_prompts",
    "max_new_tokens",
    "batch_size",
    "min_start_refusal_rate",
)
"""Settings of an evaluation that do nothing once the answers are there."""


def judge_saved_responses(
    evaluation: Path,
    judges: Sequence[str],
    suites: Sequence[str] | None = None,
    only: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> Scores:
    """Judge the answers of a finished evaluation, and write its scores anew; until then the old ones stay.

    Verdicts of earlier judges are kept, and those of a judge of the same name replaced. A judging that was stopped goes
    on with the verdicts it has.

    Args:
        evaluation: Folder with `scores.json` and the answers.
        judges: Names of judges, at least one.
        suites: Suites that they are to judge; None: all of them.
        only: Drop the verdicts of all other judges. The first judge named then leads.
        settings: Settings of judges, such as `{"llm_judge": {…}}`; those of the evaluation hold otherwise.
        progress: Told of judges that take their time.

    Example:
        >>> judge_saved_responses(Path("scores/tuned"), ["refusal-rules"]).agreement  # doctest: +SKIP

    Raises:
        InputError: With everything that is wrong: unknown judges or suites, settings, answers that are missing, cut off
            or not those that were scored.
        RunError: If a judge could not judge every answer. Verdicts that came are kept, and the old scores stay.
    """
    plan = _plan(evaluation, judges, suites, only, settings or {})
    new = judge_suites(evaluation, plan.chosen, plan.judges, progress or silent)
    judged = {part.suite.name: _with_earlier(plan.kept, part.responses, new[part.suite.name]) for part in plan.chosen}
    scored = {part.suite.name: score_suite(part.suite, judged[part.suite.name]) for part in plan.chosen}
    kept_keys = {name: key for name, key in plan.scores.judge_keys.items() if name in plan.kept}
    scores = plan.scores.model_copy(
        update={
            "settings": plan.settings,
            "judges": {**plan.kept, **{judge.name: judge.description for judge in plan.judges}},
            "judge_keys": {**kept_keys, **{judge.name: judge_key(judge) for judge in plan.judges}},
            "suites": [scored.get(suite.name, suite) for suite in plan.scores.suites],
        }
    )
    answered = [JudgedAnswers(p.suite.name, p.suite.kind, judged.get(p.suite.name, p.responses)) for p in plan.parts]
    scores, differing = with_agreement(scores, answered)
    write_evaluation(evaluation, scores, judged, differing)
    return scores


def _with_earlier(judges: Mapping[str, str], old: Sequence[Response], new: Sequence[Response]) -> list[Response]:
    """Put the verdicts of earlier judges back, in their order and before those of new ones."""
    both = []
    for before, after in zip(old, new, strict=True):
        earlier = {name: before.verdicts[name] for name in judges if name in before.verdicts}
        both.append(after.model_copy(update={"verdicts": {**earlier, **after.verdicts}}))
    return both


class _Plan(NamedTuple):
    """What is to be judged, by whom, everything found and checked.

    Attributes:
        scores: The scores so far.
        parts: The answers to all suites.
        chosen: Those to be judged.
        judges: The judges to be asked.
        kept: Earlier judges whose verdicts stay, with their descriptions; a judge that is asked again keeps its place.
        settings: For the new scores.
    """

    scores: Scores
    parts: list[SuiteAnswers]
    chosen: list[SuiteAnswers]
    judges: list[Judge]
    kept: dict[str, str]
    settings: dict[str, Any]


def _plan(
    evaluation: Path, judges: Sequence[str], suites: Sequence[str] | None, only: bool, settings: Mapping[str, Any]
) -> _Plan:
    """Read and check everything before the first judge is asked.

    Raises:
        InputError: With everything found.
    """
    scores = read_artifact(evaluation / SCORES, Scores)
    problems = ProblemList()
    parts: list[SuiteAnswers] = []
    opened: list[Judge] = []
    resolved: dict[str, Any] = {}
    for suite in scores.suites:
        with problems.collect():
            parts.append(read_saved_suite(evaluation, suite))
    with problems.collect():
        resolved, opened = _open_judges(evaluation, judges, only, settings, scores)
    problems.found += _suite_problems(evaluation, scores, suites, only)
    chosen = [part for part in parts if suites is None or part.suite.name in suites]
    problems.found += [s for part in chosen for judge in opened if (s := unsuited_sentence(judge, part.suite))]
    problems.found += [s for judge in opened if (s := idle_sentence(judge, [part.suite for part in chosen]))]
    kept = {} if only else scores.judges
    problems.found += _verdict_problems(scores, parts, [name for name in kept if name not in {j.name for j in opened}])
    problems.found += _mixed_judges(scores, parts, chosen, opened) if not only else []
    with problems.collect():
        check_verdict_files([part.folder for part in chosen], opened)
    problems.raise_if_any(InputError)
    return _Plan(scores, parts, chosen, opened, kept, resolved)


def _open_judges(
    evaluation: Path, names: Sequence[str], only: bool, changes: Mapping[str, Any], scores: Scores
) -> tuple[dict[str, Any], list[Judge]]:
    """Open the judges with the settings of the evaluation and the changes to them; also return those settings.

    Raises:
        InputError: With everything that is wrong with names and settings.
    """
    problems = ProblemList()
    useless = [name for name in changes if name in _OF_ANSWERING]
    problems.found += [f"evaluation.{name}: does nothing with saved answers. Leave it out." for name in useless]
    if "judges" in changes:
        problems.found.append("evaluation.judges: are named by --judge NAME")
    if not names:
        problems.found.append("a judge must be given. Give --judge NAME; `securetune ls judges` lists them.")
    if "llm_judge" in changes and LLM_JUDGE not in names:
        problems.found.append(f"evaluation.llm_judge: is for the judge {LLM_JUDGE}. Give --judge {LLM_JUDGE} too.")
    given = {name: value for name, value in changes.items() if name not in useless}
    judges: list[Judge] = []
    settings: dict[str, Any] = {}
    with problems.collect():
        resolved = _resolved(evaluation, names, only, given, scores)
        written = {name for name in scores.settings if name in EvaluationSettings.model_fields}
        settings = scores.settings | resolved.model_dump(mode="json", include={*written, *given, "judges"})
        for name in names:
            with problems.collect():
                judges.append(open_judge(name, resolved))
    twice = [name for name, count in Counter(judge.name for judge in judges).items() if count > 1]
    problems.found += [f'judge "{name}" is named twice' for name in twice]
    problems.raise_if_any(InputError)
    return settings, judges


def _resolved(
    evaluation: Path, names: Sequence[str], only: bool, given: Mapping[str, Any], scores: Scores
) -> EvaluationSettings:
    """Lay changes over the settings of the evaluation, without those of judges that are dropped."""
    saved = {name: value for name, value in scores.settings.items() if name in EvaluationSettings.model_fields}
    named = saved.get("judges")
    earlier = [name for name in named if isinstance(name, str)] if isinstance(named, list) else list(scores.judges)
    # `name=location` stands for a judge of that name, whatever the location was before.
    again = {name.partition("=")[0] for name in names}
    kept = [] if only else [name for name in earlier if name.partition("=")[0] not in again or name in names]
    judges = list(dict.fromkeys([*kept, *names]))
    if LLM_JUDGE not in judges:
        saved.pop("llm_judge", None)
    where = "" if given else str(evaluation / SCORES)
    return validate(EvaluationSettings, merge(merge(saved, given), {"judges": judges}), where, "evaluation")


def _suite_problems(evaluation: Path, scores: Scores, suites: Sequence[str] | None, only: bool) -> Iterator[str]:
    known = [suite.name for suite in scores.suites]
    if not known:
        yield f"{evaluation}: holds no suite, so there is nothing to judge"
    for name in suites or ():
        if name not in known:
            yield f'{evaluation}: the suite "{name}" was not evaluated; got {", ".join(known) or "none"}'
    if only and suites is not None and {*known} - {*suites}:
        yield "--only with --suite would leave the other suites without verdicts. Give one of the two."


def _verdict_problems(scores: Scores, parts: Sequence[SuiteAnswers], kept: Sequence[str]) -> Iterator[str]:
    by_name = {suite.name: suite for suite in scores.suites}
    for part in parts:
        yield from changed_verdicts(part, by_name[part.suite.name], kept)


def _mixed_judges(
    scores: Scores, parts: Sequence[SuiteAnswers], chosen: Sequence[SuiteAnswers], judges: Sequence[Judge]
) -> Iterator[str]:
    """Refuse to let two judges that share a name judge different suites, under one name."""
    names = {part.suite.name for part in chosen}
    unchosen = {part.suite.name: part.responses[0] for part in parts if part.suite.name not in names}
    for judge in judges:
        if judge.name not in scores.judges or scores.judge_keys.get(judge.name) == judge_key(judge):
            continue
        left = [name for name, first in unchosen.items() if judge.name in first.verdicts]
        if left:
            yield (
                f"judge {judge.name}: is not the one that judged {', '.join(left)} (its model or its rules differ). "
                "Leave --suite out, so that it judges all suites again."
            )
