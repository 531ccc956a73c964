"""What is read off a prompt's final hidden state: the quantities whose stability a module's robustness is measured by.

A readout is a differentiable function of the state after the final norm at the last prompt token, so that the sampled
sweep reads several quantities off one pass, and the closed form takes the gradient of any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from securetune.data.prompts import Prompt
from securetune.errors import ConfigError
from securetune.features.hidden_states import last_token_states
from securetune.models import ChatModel

_MOST_OPENINGS = 16
_LEAST_PROBABILITY = 0.02
_LEAST_RATIO = 4.0
_LEAST_MASS = 0.5


@runtime_checkable
class Readout(Protocol):
    """A number per prompt, computed from its final hidden state; positive where the model is on the safe side."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    def logits(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Return the log-odds at each state, differentiable with respect to the states."""


@dataclass(frozen=True)
class RefusalMargin:
    """Log-odds of a refusal opening against a compliance opening at the first answer token.

    With P(t) the model's probability of token t there: ln Σ_{t in refusal} P(t) - ln Σ_{t in compliance} P(t). A
    classifier of prompts is not yet refusal behaviour; this is one step nearer to it.

    Attributes:
        refusal_weight: Rows of the output matrix for the refusal openings.
        compliance_weight: The same for the compliance openings.
        refusal_bias: Their biases; zeros where the head has none.
        compliance_bias: The same for the compliance openings.
        refusal_openings: The tokens as text, for the report.
        compliance_openings: The same.
        cap: Soft cap on the logits (Gemma 2's), or None.
        scale: What the logits are multiplied by (Granite divides them, Cohere multiplies).
    """

    refusal_weight: Float[Tensor, "refusal hidden"]
    compliance_weight: Float[Tensor, "compliance hidden"]
    refusal_bias: Float[Tensor, " refusal"]
    compliance_bias: Float[Tensor, " compliance"]
    refusal_openings: tuple[str, ...]
    compliance_openings: tuple[str, ...]
    cap: float | None = None
    scale: float = 1.0

    name = "refusal margin"

    def logits(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Return the margin at each state, in float32 or the states' precision, whichever is higher."""
        refusal = self._of(states, self.refusal_weight, self.refusal_bias)
        compliance = self._of(states, self.compliance_weight, self.compliance_bias)
        return refusal.logsumexp(dim=-1) - compliance.logsumexp(dim=-1)

    def _of(
        self,
        states: Float[Tensor, "*batch hidden"],
        weight: Float[Tensor, "token hidden"],
        bias: Float[Tensor, " token"],
    ) -> Float[Tensor, "*batch token"]:
        precision = torch.promote_types(states.dtype, torch.float32)
        found = self.scale * (
            states.to(precision) @ weight.to(states.device, precision).mT + bias.to(states.device, precision)
        )
        return found if self.cap is None else self.cap * torch.tanh(found / self.cap)


@dataclass(frozen=True)
class Openings:
    """Token ids with which answers begin.

    Attributes:
        refusal: Of refusals.
        compliance: Of answers.
        refusal_mass: Mean probability of the refusal openings on the harmful prompts, in [0, 1].
        compliance_mass: Mean probability of the compliance openings on the harmless prompts, in [0, 1].
    """

    refusal: tuple[int, ...]
    compliance: tuple[int, ...]
    refusal_mass: float
    compliance_mass: float

    @property
    def usable(self) -> bool:
        """Whether both sets hold most of the probability where they should."""
        return bool(self.refusal and self.compliance) and min(self.refusal_mass, self.compliance_mass) >= _LEAST_MASS


def find_openings(
    chat: ChatModel, harmful: Sequence[Prompt], harmless: Sequence[Prompt], batch_size: int = 64
) -> Openings:
    """Find with which tokens the model itself begins refusals and answers.

    A token is a refusal opening if its mean probability at the first answer token is at least 2 % on the harmful
    prompts and four times that on the harmless ones; a compliance opening the other way round. So no list of phrases
    has to fit the tokenizer and the habits of a model; what was found is in the report, for a person to check. It says
    what the model does on the two sets, so a model that does not refuse has no refusal openings.

    Args:
        chat: An aligned model.
        harmful: Requests that it refuses.
        harmless: Requests that it answers.
        batch_size: Prompts a pass.
    """
    on_harmful = _first_token_probabilities(chat, harmful, batch_size)
    on_harmless = _first_token_probabilities(chat, harmless, batch_size)
    refusal = _typical(on_harmful, on_harmless)
    compliance = _typical(on_harmless, on_harmful)
    return Openings(
        tuple(refusal), tuple(compliance), on_harmful[refusal].sum().item(), on_harmless[compliance].sum().item()
    )


def openings_from_phrases(chat: ChatModel, refusals: Sequence[str], compliances: Sequence[str]) -> Openings:
    """Take the first token of each phrase; masses are not measured and count as 1.

    Raises:
        ConfigError: If a refusal and a compliance begin with the same token, a list is empty, or a phrase has no token.
    """
    first = [
        tuple(dict.fromkeys(_first_token(chat, name, phrase) for phrase in phrases))
        for name, phrases in (("refusal_openings", refusals), ("compliance_openings", compliances))
    ]
    shared = [chat.tokenizer.decode([token]) for token in first[0] if token in first[1]]
    if shared or not all(first):
        raise ConfigError(
            "analysis.refusal_openings and analysis.compliance_openings must both be given and begin with different "
            f"tokens; got {len(first[0])} and {len(first[1])}" + (f", both with {shared[0]!r}" if shared else "")
        )
    return Openings(first[0], first[1], 1.0, 1.0)


def _first_token(chat: ChatModel, name: str, phrase: str) -> int:
    ids: list[int] = chat.tokenizer(phrase, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError(f"analysis.{name}: each must begin with a token; got {phrase!r}")
    return ids[0]


def refusal_margin(chat: ChatModel, openings: Openings) -> RefusalMargin:
    """Build the readout for a model.

    Example:
        >>> from securetune.models import load
        >>> from securetune.data.prompts import load_probes
        >>> from securetune.config import ProbeSettings
        >>> chat, probes = load(), load_probes(ProbeSettings(), "tiny-world")
        >>> margin = refusal_margin(chat, find_openings(chat, probes.fit_harmful, probes.fit_harmless))
        >>> "I" in margin.refusal_openings
        True
    """
    head: Any = chat.model.get_output_embeddings()
    weight = head.weight.detach()
    bias = getattr(head, "bias", None)
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    refusal, compliance = list(openings.refusal), list(openings.compliance)
    return RefusalMargin(
        refusal_weight=weight[refusal].clone(),
        compliance_weight=weight[compliance].clone(),
        refusal_bias=bias[refusal].clone(),
        compliance_bias=bias[compliance].clone(),
        refusal_openings=tuple(str(chat.tokenizer.decode([token])) for token in refusal),
        compliance_openings=tuple(str(chat.tokenizer.decode([token])) for token in compliance),
        cap=_logit_cap(chat.model),
        scale=_logit_scale(chat.model),
    )


def _logit_cap(model: PreTrainedModel) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def _logit_scale(model: PreTrainedModel) -> float:
    config = model.config.get_text_config()
    return getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)


@torch.inference_mode()
def _first_token_probabilities(
    chat: ChatModel, prompts: Sequence[Prompt], batch_size: int
) -> Float[Tensor, " vocabulary"]:
    """Return each token's probability at the first answer token, mean over the prompts."""
    states = last_token_states(chat.model, chat.tokenizer, prompts, batch_size)
    head: Any = chat.model.get_output_embeddings()
    cap, total = _logit_cap(chat.model), None
    for part in states.split(batch_size):
        logits = _logit_scale(chat.model) * head(part.to(head.weight.dtype)).float()
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        found = logits.softmax(dim=-1).sum(dim=0)
        total = found if total is None else total + found
    assert total is not None
    return (total / len(states)).cpu()


def _typical(here: Float[Tensor, " vocabulary"], there: Float[Tensor, " vocabulary"]) -> list[int]:
    chosen = (here >= _LEAST_PROBABILITY) & (here >= _LEAST_RATIO * there)
    order = here.masked_fill(~chosen, -1.0).argsort(descending=True)
    return order[: min(int(chosen.sum()), _MOST_OPENINGS)].tolist()
