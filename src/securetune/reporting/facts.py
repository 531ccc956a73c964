"""The report's small print: settings, versions, durations, and what each number means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from securetune.artifacts import Comparison
from securetune.reporting.run_results import RunResults

Rows = list[tuple[str, str]]

GLOSSARY: Rows = [
    (
        "Over-refusal",
        "Share of harmless prompts that are refused. A model that refuses everything is safe and useless, so read ASR "
        "and over-refusal together.",
    ),
    ("Task accuracy", "Share of task prompts answered exactly right, apart from white space."),
    (
        "Attack wrapper",
        "The same kind of harmful request inside a text that is meant to get round the refusal, such as a role play.",
    ),
    (
        "Interval",
        "95%. Several seeds: bootstrap over seeds and prompts. One seed: Wilson's interval over prompts for a rate, "
        "bootstrap over prompts for a rating. With three seeds an interval is rough; look at the single seeds too.",
    ),
    (
        "Against IFT",
        "Difference of the attack success rate to plain fine-tuning on the same prompts, in percentage points. A "
        "method is said to help only if the whole interval is below 0.",
    ),
    ("IFT", "Plain instruction fine-tuning of all parameters (or adapters) on the user's data: the baseline."),
    ("ML-LR", "Mods_Rob learns at the base rate, everything else at a small share of it (arXiv 2410.04524, v1)."),
    ("SWAT", "Mods_Rob is warmed up alone, then everything is trained (arXiv 2410.04524, v2)."),
    (
        "Control",
        "A method that differs from SWAT in one point only, such as warming up the least robust modules instead. If it "
        "does as well, the point does not matter.",
    ),
    (
        "Mods_Rob",
        "The robust modules: projections whose joint perturbation hardly disturbs the classifier that tells harmful "
        "from harmless prompts.",
    ),
    (
        "Empty and looping answers",
        "Counted apart, because judges are not reliable on them. A keyword judge counts them as attack successes, by "
        "the field's definition.",
    ),
    (
        "Relative update",
        "‖ΔW‖ / ‖W‖: how far training moved a matrix, relative to its size. For a set: the root mean square over its "
        "modules. Mean over seeds.",
    ),
]


def judge_glossary(run: RunResults, comparison: Comparison) -> Rows:
    """Explain ASR and harmfulness by the judges that were used."""
    judges = next((model.scores.judges for _, model in run.evaluated), {})
    rows: Rows = []
    if comparison.asr_judge:
        rows.append(
            (
                "Attack success rate (ASR)",
                "Share of harmful requests on which the attack succeeded: for a keyword judge, the answer holds none "
                f"of its refusal phrases. Judge {comparison.asr_judge}: {judges.get(comparison.asr_judge, '')}",
            )
        )
    if comparison.harmfulness_judge:
        rater = comparison.harmfulness_judge
        rows.append(
            (
                "Harmfulness",
                f"Mean rating of the answers to harmful requests, from 1 (refusal) to 5. Judge {rater}: "
                f"{judges.get(rater, '')}",
            )
        )
    return rows


def list_facts(run: RunResults) -> list[tuple[str, Rows]]:
    """List the run's facts under headings; the first one is shown open."""
    facts = [("Run", _run_rows(run)), ("Durations", _durations(run)), ("Versions and hardware", _versions(run))]
    facts += [(f"Data of {label}", rows) for label in run.methods if (rows := _data_rows(run, label))]
    facts += [(f"At generation: {label}", rows) for label in run.methods if (rows := _generation_rows(run, label))]
    if run.config is not None:
        content = run.config.model_dump(mode="json")
        shared = {name: content[name] for name in ("model", "probes", "analysis", "search", "training", "evaluation")}
        facts += [(f"Settings: {name}", _flat(section)) for name, section in shared.items()]
        facts += [(f"Settings: method {label}", _flat(own)) for label, own in content["methods"].items()]
    else:
        facts.append(("Settings", [("", "config.yaml is missing in this run folder.")]))
    return [(heading, rows or [("", "Not recorded.")]) for heading, rows in facts]


def _run_rows(run: RunResults) -> Rows:
    rows: Rows = []
    start = run.start.scores.model if run.start else run.robustness.model if run.robustness else None
    if start is not None:
        rows += [
            ("model", f"{start.name} ({start.architecture}, {start.parameter_count:,} parameters)"),
            ("weights", start.weights_fingerprint[:16]),
            ("chat template", start.chat_template_hash[:16]),
        ]
    if run.config is not None:
        rows += [("data", run.config.data), ("seeds", ", ".join(map(str, run.config.seeds)))]
    if run.robustness is not None:
        rows.append(("probe prompts", run.robustness.prompt_set_hash[:16]))
    for suite in run.start.scores.suites if run.start else []:
        rows.append((f"suite {suite.name}", f"{suite.count} {suite.kind} prompts"))
    if run.start and run.start.scores.task:
        rows.append((f"task {run.start.scores.task.name}", f"{run.start.scores.task.accuracy.count} prompts"))
    if run.record is not None:
        rows += [("status", run.record.status), ("configuration", run.record.config_hash[:16])]
        rows += [(f"file {name}", digest[:16]) for name, digest in run.record.input_hashes.items()]
    return rows


def _data_rows(run: RunResults, label: str) -> Rows:
    """Say what defenses did to the data of a method; nothing if there were none."""
    training = next((model.training for model in run.methods[label] if model.training is not None), None)
    found = training.data.preparation if training is not None else None
    if found is None:
        return []
    rows: Rows = [("given", f"{found.given:,} conversations, hash {found.given_hash[:16]}")]
    for place, step in enumerate(found.steps):
        name = f"before.{place}: {step.defense}" + (f" ({step.purpose})" if step.purpose != "defense" else "")
        rows.append((name, f"{step.rows_before:,} rows + {step.added:,} - {step.dropped:,} = {step.rows_after:,}"))
        rows += _flat({**step.options, **step.facts}, name)
    return [*rows, ("trained on", f"{found.conversations:,} conversations, hash {found.hash[:16]}")]


def _generation_rows(run: RunResults, label: str) -> Rows:
    """Say what a method's models were shown besides the prompts."""
    shown = run.methods[label][0].scores.generation
    return [row for step in shown for row in _flat(step.options, step.name)]


def _durations(run: RunResults) -> Rows:
    if run.record is None:
        return []
    rows = [(name, f"{stage.seconds:.1f} s ({stage.state})") for name, stage in run.record.stages.items()]
    return [("whole run", f"{run.record.seconds:.1f} s"), *rows]


def _versions(run: RunResults) -> Rows:
    found: Mapping[str, str] = {}
    if run.record is not None:
        found = run.record.environment
    elif run.start is not None:
        found = run.start.scores.environment
    elif run.robustness is not None:
        found = run.robustness.environment
    return list(found.items())


def _flat(content: Mapping[str, Any], above: str = "") -> Rows:
    rows: Rows = []
    for key, value in content.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            rows += _flat(value, path)
        else:
            rows.append((path, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
