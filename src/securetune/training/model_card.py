"""What a model card says of a training: what it was made from, how, with which figures, and what it does not promise.

The card of `securetune train` and the one of `SecureSFTTrainer` are made of the same sections. Others read them, so
they name models and data by name only and never tell a path of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from securetune.artifacts import DataStep, RobustModules, TrainingData, TrainingResult, UpdateNorm, sha256_json
from securetune.data.conversations import shown_sources
from securetune.defenses import GenerationDefense
from securetune.models.registry import is_hub_name, shown_name

_VERSIONS = ("python", "securetune", "torch", "transformers", "trl", "peft", "accelerate", "datasets")

_SELECTIONS = {
    "searched": "found by analysis and search",
    "sensitive": "a control: the least robust modules",
    "random": "a control: drawn at random",
    "top-k": "a control: the most robust modules by themselves, not tested together",
    "pattern": "a control: by a rule, not by analysis",
}

LIMITS = [
    "## What this is no evidence for",
    "",
    "**This is no safety guarantee.** Fine-tuning with securetune is meant to lose fewer of the start model's refusals "
    "than plain fine-tuning does. Whether it did here must be measured (`securetune evaluate`), and a model that "
    "refuses what it was tested with can still be made to answer. A low loss says nothing about safety, and rates of "
    "refusal on a few prompts show erosion, not how safe a model is.",
    "",
    "## Licence",
    "",
    "The licences and terms of use of the start model and of the training data apply to this model too. securetune "
    "adds none, and has not checked them.",
    "",
]
"""The same for every model, so that no card leaves it out."""


GENERATION_HEADING = "## At generation"
"""It is the last section of a card."""


class PhaseFigures(NamedTuple):
    """One phase on a card.

    Attributes:
        name: `warmup` or `main`.
        steps: Optimizer steps.
        rates: Group → peak learning rate.
        figures: What was measured → its value as text.
    """

    name: str
    steps: int
    rates: Mapping[str, float]
    figures: Mapping[str, str]


def phases_section(phases: Sequence[PhaseFigures]) -> list[str]:
    """Return steps, rates and figures of each phase."""
    lines = ["## Phases", ""]
    for phase in phases:
        rates = ", ".join(f"{group} at learning rate {rate:g}" for group, rate in phase.rates.items())
        lines.append(f"- {phase.name}: {phase.steps} steps; {rates}")
        lines += [f"  - {what}: {value}" for what, value in phase.figures.items()]
    return [*lines, ""]


def data_section(data: TrainingData) -> list[str]:
    """Return what was trained on, and what defenses did to it before."""
    trained = f"Training data: {data.conversations:,} conversations, content hash `{data.hash}`."
    found = data.preparation
    if found is None:
        return [trained, ""]
    given = f"Given were {found.given:,} conversations, content hash `{found.given_hash}`; before the training:"
    return [trained, "", given, "", *(f"- {data_step_sentence(step)}" for step in found.steps), ""]


def data_step_sentence(step: DataStep) -> str:
    """Say what a defense did to the data; files are named without the folders of this machine."""
    did = [f"{count:,} rows {what}" for count, what in ((step.added, "added"), (step.dropped, "dropped")) if count]
    known = {**step.options, **step.facts}
    told = [f"{name} {_named(value)}" for name, value in known.items() if value is not None and _is_plain(value)]
    attack = ", an attack for experiments" if step.purpose == "attack" else ""
    return (
        f"`{step.defense}`{attack}: {' and '.join(did) or 'nothing changed'} ({', '.join(told)}); {step.rows_after:,} "
        f"conversations, content hash `{step.hash}`"
    )


def generation_section(defenses: Sequence[GenerationDefense]) -> list[str]:
    """Say what the model is meant to be shown when it answers."""
    options = {each.name: json.dumps(each.options.model_dump(mode="json")) for each in defenses}
    steps = [f"- `{each.name}` ({each.source}): {options[each.name]}" for each in defenses]
    return [
        GENERATION_HEADING,
        "",
        "This model is meant to answer through the following, which whoever uses it has to apply; `securetune "
        "evaluate` reads it in `generation_defenses.json`. Without it, measure the refusals anew.",
        "",
        *steps,
        "",
    ]


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def _named(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return shown_sources(value) if isinstance(value, str) else str(value)


def alignment_figures(steps: int) -> dict[str, str]:
    """Return how many optimizer steps there were besides, on rows of the method's own; nothing if there were none."""
    return {"optimizer steps besides, on rows of the method's own": f"{steps}"} if steps else {}


def modules_section(names: Sequence[str], selection: str, facts: Sequence[str] = ()) -> list[str]:
    """Return the robust modules by name, and how they were chosen.

    Args:
        names: Their names; none, if the method uses none.
        selection: How they were chosen, as a phrase.
        facts: Sentences about them.
    """
    if not names:
        return ["## Robust modules", "", "None: this method uses no robust modules.", ""]
    head = ["## Robust modules", "", f"{len(names)} modules, {selection}.", *facts, ""]
    return [*head, *(f"- `{name}`" for name in names), ""]


def selection_phrase(selection: str | None) -> str:
    """Return how a manifest was made, as a phrase."""
    return _SELECTIONS.get(selection or "", "of unknown origin")


def manifest_facts(manifest: RobustModules) -> list[str]:
    """Return what a manifest says of itself, as sentences."""
    source = manifest.model
    revision = f", revision `{source.revision}`" if source.revision else ""
    return [
        f"They hold {manifest.parameter_fraction:.1%} of the projection parameters. Analyzed was "
        f"`{shown_name(source.name)}`{revision} ({source.architecture}, weights `{source.weights_fingerprint[:12]}`). "
        f"Manifest: `robust_modules.json`, content hash `{manifest_hash(manifest)}`."
    ]


def manifest_to_publish(manifest: RobustModules) -> RobustModules:
    """Return a manifest whose model is named without the folders of this machine; what is compared stays."""
    return manifest.model_copy(
        update={"model": manifest.model.model_copy(update={"name": shown_name(manifest.model.name)})}
    )


def manifest_hash(manifest: RobustModules) -> str:
    """Hash a manifest as it is published."""
    return sha256_json(manifest_to_publish(manifest).model_dump(mode="json"))


def versions_section(environment: Mapping[str, str]) -> list[str]:
    """Return the versions of the packages that matter."""
    return ["## Versions", "", *(f"- {name}: {environment[name]}" for name in _VERSIONS if name in environment), ""]


def model_card(result: TrainingResult, is_adapter: bool) -> str:
    """Write the card of a finished training of the command line."""
    settings, name = result.settings, shown_name(result.model.name)
    kind = "LoRA adapter" if is_adapter else "all parameters"
    phases = [
        PhaseFigures(
            phase.name,
            phase.steps,
            {group.name: group.learning_rate for group in phase.groups},
            {
                "loss, nats per token": f"{phase.first_loss_nats_per_token:.4g} at the beginning, "
                f"{phase.last_loss_nats_per_token:.4g} at the end",
                **alignment_figures(phase.alignment_steps),
            },
        )
        for phase in result.phases
    ]
    base = [f"base_model: {json.dumps(name)}"] if is_hub_name(result.model.name) else []
    lines = [
        "---",
        *base,
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        f"tags: [securetune, {result.method}, sft]",
        "---",
        "",
        f"# {name}, fine-tuned with {result.method}",
        "",
        f"Start model: `{name}`, revision `{result.model.revision or 'default'}`",
        "",
        f"Method: `{result.method}` ({kind}), seed {settings['seed']}, other parameters: "
        f"{settings['other_parameters']}, {settings['per_device_train_batch_size']} rows a batch.",
        "",
        *data_section(result.data),
        *phases_section(phases),
        "## How far the weights moved (relative to their norm)",
        "",
        f"- robust modules: {_shown(result.update.inside)}",
        f"- other modules: {_shown(result.update.outside)}",
        f"- embeddings, norms and head: {_shown(result.update.other)}",
        "",
        *modules_section(result.robust_modules, selection_phrase(result.selection)),
        *versions_section(result.environment),
        *LIMITS,
    ]
    return "\n".join(lines)


def _shown(norm: UpdateNorm | None) -> str:
    return "none" if norm is None else f"{norm.relative:.4f}"
