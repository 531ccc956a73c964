"""DataShield: rows are scored by how far their answers go towards compliance, and the highest are dropped.

From the paper (arXiv 2606.00160) and the code that its authors published: the compliance vector is the difference of
the mean response activations over harmful requests that are accepted and refused, normalised; the layer is the one with
the largest compliance-aware score vᵀS_b v / vᵀS_t v (S_b between the two kinds of answers, S_t in all); a row's
compliance shift score is the projection of its mean response activation minus that of its last prompt token; the rows
with the highest scores are the ones that degrade safety. The response is the answer without what the template puts
behind it.

Ours, where the text is silent or asks for what we do not have:

- The accepted answers. The authors' are harmful answers, which we do not ship. Built in are 120 requests of the probes'
  fitting categories with openings that agree and say nothing, against refusals written for this project; for tiny world
  its exact answers and refusals. `pairs` takes a file with others, such as the authors'.
- The layer's score is taken on the mean response activations that also make the vector, not on standardised activations
  of the last token, and on pairs that the direction was not made of (two halves, each for the other): a direction of
  thousands of dimensions separates whatever it was fitted to.
- A layer's activation is its output (the residual stream), also for the last layer; embeddings are no candidate.
- In a conversation of several turns the last answer counts, and all that stands before it is the prompt.
- How many rows go: the authors compare the 1,000 highest with the 1,000 lowest; here it is a share or a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator

from securetune.config import ModelSettings, PositiveInt, Settings
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt
from securetune.defenses.data_defense import ChangedRows, DataContext
from securetune.defenses.datashield.activations import AnswerTokens, answer_tokens, layer_states
from securetune.defenses.datashield.compliance import ComplianceDirection, find_direction
from securetune.defenses.datashield.pairs import AnswerPair, conversations_of, load_pairs, pairs_hash, requests_of
from securetune.defenses.registry import register_defense
from securetune.defenses.row_dropping import DropOptions, RowDrop
from securetune.errors import ConfigError, DataError
from securetune.models import ChatModel, load_skeleton
from securetune.models.layer_weights import decoder_layers


class DataShieldOptions(DropOptions):
    """Options of `datashield`.

    Attributes:
        layer: Layer whose output is projected, counted from 1. None: the one that tells acceptance from refusal best.
        prompts: File of harmful requests for the compliance vector; None: the built-in ones, which no suite holds. They
            are accepted and refused with texts of our own.
        pairs: Instead: JSON lines with `prompt`, `accepted` and `refused`.
        max_length: Tokens a row; what is beyond is not scored. 1024, as `training.max_length`.
        batch_size: Rows a forward pass. It changes no score beyond rounding.
    """

    layer: Annotated[int, Field(ge=1)] | None = None
    prompts: str | None = None
    pairs: str | None = None
    max_length: PositiveInt = 1024
    batch_size: PositiveInt = 16

    @model_validator(mode="after")
    def _names_one_source(self) -> DataShieldOptions:
        if self.prompts is not None and self.pairs is not None:
            raise ValueError("prompts and pairs both name the harmful requests; give one of them")
        return self


@register_defense("datashield")
class DataShield(RowDrop):
    """DataShield: the rows whose answers move furthest from the prompt towards compliance are dropped.

    One forward pass over the rows, up to the chosen layer, and one over the pairs through all layers; in the precision
    and on the device that `model` names. Rows of which the cut leaves no answer have no score, and go last.
    """

    source = "arXiv 2606.00160"
    needs = "the start model's weights, before training"
    options_type: ClassVar[type[Settings]] = DataShieldOptions
    needs_model: ClassVar[bool] = True

    @property
    def own(self) -> DataShieldOptions:
        """The options, with their type."""
        assert isinstance(self.options, DataShieldOptions)
        return self.options

    def check(self, model: ModelSettings) -> None:
        """Read the pairs, and see whether the model has the layer.

        Raises:
            InputError: If a file cannot be used, or there is no such layer.
        """
        self._pairs(model.name)
        if self.own.layer is not None:
            count = len(decoder_layers(load_skeleton(model)))
            if self.own.layer > count:
                raise ConfigError(f"{self.name}.layer must be in [1, {count}] for {model.name}; got {self.own.layer}")

    def _pairs(self, model_name: str) -> list[AnswerPair]:
        try:
            return load_pairs(model_name, self.own.prompts, self.own.pairs)
        except DataError as error:
            raise DataError([f"{self.name}: {problem}" for problem in error.problems]) from None

    def read_hash(self, model_name: str) -> str | None:
        """Return the hash of the pairs."""
        return pairs_hash(self._pairs(model_name))

    def prompts_used(self, model_name: str) -> Sequence[Prompt]:
        """Return the harmful requests of the pairs."""
        return requests_of(self._pairs(model_name))

    def preview(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Return as many rows as will be left, without knowing which."""
        count = self.rows_after(len(rows), context.model_name)
        return self.without(rows, range(count, len(rows)))

    def change(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Score the rows, and drop the highest."""
        count = len(rows) - self.rows_after(len(rows), context.model_name)
        if count == 0:
            return self.without(rows, ())
        chat, pairs = context.load(), self._pairs(context.model_name)
        direction = self._direction(chat, pairs)
        scores = self._scores(chat, rows, direction, context)
        ranked = sorted(range(len(rows)), key=lambda place: _rank(scores[place]), reverse=True)
        return self.without(rows, ranked[:count], tuple(scores), _facts(direction, pairs, scores, ranked[:count]))

    def _direction(self, chat: ChatModel, pairs: Sequence[AnswerPair]) -> ComplianceDirection:
        layers = list(range(1, len(decoder_layers(chat.model)) + 1))
        accepted, refused = (self._answer_states(chat, pairs, layers, kind) for kind in (True, False))
        return find_direction(accepted, refused, layers, self.own.layer)

    def _answer_states(
        self, chat: ChatModel, pairs: Sequence[AnswerPair], layers: list[int], accepted: bool
    ) -> torch.Tensor:
        tokens = answer_tokens(chat.tokenizer, conversations_of(pairs, accepted), self._longest(chat))
        if any(row is None for row in tokens):
            raise ConfigError(
                f"{self.name}.max_length must leave a part of each pair's answer; got {self.own.max_length}"
            )
        states: torch.Tensor | None = None
        for batch in layer_states(chat, [row for row in tokens if row is not None], layers, self.own.batch_size):
            if states is None:
                states = batch.answers.new_empty(len(layers), len(pairs), batch.answers.shape[-1])
            states[:, batch.rows] = batch.answers
        assert states is not None
        return states

    def _scores(
        self, chat: ChatModel, rows: Sequence[Conversation], direction: ComplianceDirection, context: DataContext
    ) -> list[float | None]:
        tokens = answer_tokens(chat.tokenizer, rows, self._longest(chat))
        places = [place for place, row in enumerate(tokens) if row is not None]
        scored: list[AnswerTokens] = [row for row in tokens if row is not None]
        scores: list[float | None] = [None] * len(rows)

        def tell(done: int) -> None:
            context.progress("rows scored", done, len(scored))

        for batch in layer_states(chat, scored, [direction.layer], self.own.batch_size, tell):
            shifts = (batch.answers[0] - batch.before[0]) @ direction.vector
            for row, shift in zip(batch.rows, shifts.tolist(), strict=True):
                scores[places[row]] = shift
        return scores

    def _longest(self, chat: ChatModel) -> int:
        context = getattr(chat.model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.own.max_length, context) if context else self.own.max_length


def _rank(score: float | None) -> tuple[bool, float]:
    return (score is not None, score or 0.0)


def _facts(
    direction: ComplianceDirection, pairs: Sequence[AnswerPair], scores: Sequence[float | None], gone: Sequence[int]
) -> dict[str, Any]:
    known = [score for score in scores if score is not None]
    dropped = [score for place in gone if (score := scores[place]) is not None]
    return {
        "layer": direction.layer,
        "explained_share_by_layer": {str(layer): round(share, 6) for layer, share in direction.explained.items()},
        "pairs": len(pairs),
        "pairs_hash": pairs_hash(pairs),
        "lowest_dropped_score": min(dropped, default=None),
        "mean_score": sum(known) / len(known) if known else None,
        "rows_without_score": len(scores) - len(known),
    }
