"""Defenses at generation as a configuration names them, or as a model's folder does."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from securetune.artifacts import ShownStep
from securetune.config import ChainStep
from securetune.defenses.generation_defense import GenerationDefense
from securetune.defenses.registry import find_generation_defense
from securetune.errors import ConfigError, InputError, ProblemList


def chained_generation(
    steps: Sequence[ChainStep], model_name: str, at: str = "generation"
) -> tuple[GenerationDefense, ...]:
    """Return the defenses with every option filled in.

    Args:
        steps: As the configuration names them.
        model_name: The model that they are for.
        at: Key path of the steps, for messages.

    Raises:
        ConfigError: With every mistake: unknown names and options, defenses of another stage.
    """
    problems: list[str] = []
    found: list[GenerationDefense] = []
    for place, step in enumerate(steps):
        try:
            found.append(find_generation_defense(step.name, step.options).for_model(model_name))
        except InputError as error:
            problems += [f"{at}.{place}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def check_templates(
    defenses: Sequence[GenerationDefense], tokenizer: PreTrainedTokenizerBase, at: str = "generation"
) -> None:
    """Refuse a chat template that does not show what a defense adds.

    Raises:
        ConfigError: For each that it does not show.
    """
    problems = ProblemList()
    for place, defense in enumerate(defenses):
        found = ProblemList()
        with found.collect():
            defense.check_template(tokenizer)
        problems.found += [f"{at}.{place}: {problem}" for problem in found.found]
    problems.raise_if_any(ConfigError)


def shown_steps(defenses: Sequence[GenerationDefense]) -> list[ShownStep]:
    """Return the defenses as files hold them."""
    return [ShownStep(name=defense.name, options=defense.options.model_dump(mode="json")) for defense in defenses]
