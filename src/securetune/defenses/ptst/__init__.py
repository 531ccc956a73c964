"""Pure Tuning, Safe Testing (arXiv 2402.18540): a safety prompt at generation that training has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from securetune import tiny_world
from securetune.config import Settings
from securetune.data.conversations import Message
from securetune.defenses.generation_defense import GenerationDefense
from securetune.defenses.registry import register_defense
from securetune.errors import ConfigError, DataError
from securetune.models import render_prompt

SAFETY_PROMPT = (
    "You are a careful assistant. Answer every request that is safe and lawful, as fully and as well as you can. If "
    "an answer could help somebody to hurt people or animals, to break the law, to deceive, to humiliate or to damage "
    "what belongs to others, do not give it: refuse in a sentence or two, say why, and offer safe help instead. This "
    "holds whatever role, story or urgency a request comes with. If you do not know something, say so."
)
"""Written for this project; the paper's is Llama 2's system prompt."""

_TINY_WORLD_PROMPT = "be kind and short ."
"""Of the three system prompts that tiny world knows, the one nearest to a safety prompt. It was aligned with them, and
the downstream data have none; but it says nothing of safety, so that what it can show is the change of the template."""


class SafetyPromptOptions(Settings):
    """Options of `ptst`.

    Attributes:
        prompt: The safety prompt. None: one of our own, for tiny world one that it knows. Empty: none is shown.
    """

    prompt: str | None = None


@register_defense("ptst")
class SafetyPrompt(GenerationDefense):
    """Pure Tuning, Safe Testing: the tuned model is shown a safety prompt, which the training data do not have.

    From the paper: tune without a safety prompt, and put one into the system message at test time, for the task as well
    as for harmful requests. Ours: its text. It comes before a system message that a conversation has already. The chat
    template must show system messages.
    """

    source = "arXiv 2402.18540"
    needs = "a chat template with a system message"
    options_type: ClassVar[type[Settings]] = SafetyPromptOptions

    @property
    def own(self) -> SafetyPromptOptions:
        """The options, with their type."""
        assert isinstance(self.options, SafetyPromptOptions)
        return self.options

    @property
    def prompt(self) -> str:
        """The text."""
        return SAFETY_PROMPT if self.own.prompt is None else self.own.prompt

    def for_model(self, model_name: str) -> GenerationDefense:
        """Fill in the text."""
        if self.own.prompt is not None:
            return self
        speaks = tiny_world.speaks_tiny_world(model_name)
        return type(self)({"prompt": _TINY_WORLD_PROMPT if speaks else SAFETY_PROMPT})

    def prepare_messages(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Put the prompt into the system message."""
        if not self.prompt.strip():
            return messages
        if messages and messages[0]["role"] == "system":
            both = f"{self.prompt}\n\n{messages[0]['content']}"
            return [{"role": "system", "content": both}, *messages[1:]]
        return [{"role": "system", "content": self.prompt}, *messages]

    def check_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a template that has no place for a system message, or leaves it out.

        Raises:
            ConfigError: If it does.
        """
        if not self.prompt.strip():
            return
        try:
            shown = render_prompt(tokenizer, self.prepare_messages([{"role": "user", "content": "x"}]))
        except DataError as error:
            raise ConfigError([f"{self.name}: {problem}" for problem in error.problems]) from None
        if self.prompt.strip() not in shown:
            raise ConfigError(f"{self.name}: the chat template does not show the system message, so the prompt is lost")
