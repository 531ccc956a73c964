"""Defenses at generation: what the tuned model is shown when it answers. No weight changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from transformers import PreTrainedTokenizerBase

from securetune.config import validate
from securetune.data.conversations import Message
from securetune.defenses.base import Defense


class GenerationDefense(Defense):
    """Base of the defenses at generation. `prepare_messages` does the work.

    What it shows may depend on its options and the model's name alone, so that options which are filled in
    (`for_model`) say all there is to say, and can be kept with a model and with its answers.
    """

    stage: ClassVar[Literal["data", "training", "weights", "generation"]] = "generation"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = validate(self.options_type, dict(options or {}), at=self.name)

    def for_model(self, model_name: str) -> GenerationDefense:
        """Return the defense with every option that depends on the model filled in."""
        return self

    def check_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a model whose chat template does not show what the defense adds.

        Raises:
            ConfigError: If it is refused, or silently left out.
        """


def shown_messages(
    messages: Sequence[Mapping[str, Any]], defenses: Sequence[GenerationDefense]
) -> Sequence[Mapping[str, Any]]:
    """Return what the model is shown instead of these messages, with the defenses one after the other."""
    shown: Sequence[Any] = messages
    for defense in defenses:
        found: Sequence[Message] = defense.prepare_messages(shown)
        shown = found
    return shown
