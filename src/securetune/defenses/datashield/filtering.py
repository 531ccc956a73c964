"""DataShield: rows are scored by how far their answers go towards compliance, and the highest are dropped.

From the paper (arXiv 2606.00160) and the code that its authors published: the compliance vector is the difference of
the mean response activations over harmful requests that are accepted and refused, normalised; the layer is the one with
the largest compliance-aware score vᵀS_b v / vᵀS_t v (S_b between the two kinds of answers, S_t in all); a row's
compliance shift score is the projection of its mean response activation minus that of its last prompt token; the rows
with the highest scores are the ones that degrade safety. The response is the answer without what the template puts
behind it.

Ours, where the text is silent or asks for what we do not have:

- The answers. The authors' are harmful requests with harmful answers, and with refusals. We ship no harmful answers, so
  the start model itself answers harmful requests, which it mostly refuses, and their harmless twins, which it answers:
  in its own words, and of the probes' fitting categories. For tiny world its exact answers are the default. `pairs`
  takes a file such as the authors'. Openings that agree and say nothing, our first choice, did worse.
- The layer. The authors take the best by vᵀS_b v / vᵀS_t v, of standardised activations of the last token. On tiny
  world, with the model's own answers, that is above 0.96 in all six layers and the highest in the fifth, where the 100
  rows to be dropped hold 28 of 100 answered harmful requests: the last prompt token of a late layer holds the coming
  answer already. So the layer is chosen by what rows are ranked by, the distance between compliance and refusal against
  the spread of the shifts (`compliance.LayerQuality`); there it is the third, where 98 of 100 are found. Both are
  recorded for every layer, on answers that the direction was not made of, since a direction of thousands of dimensions
  separates whatever it was fitted to.
- A layer's activation is its output (the residual stream), also for the last layer; embeddings are no candidate.
- In a conversation of several turns the last answer counts, and all that stands before it is the prompt.
- How many rows go: the authors compare the 1,000 highest with the 1,000 lowest; here it is a share or a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator

from securetune.config import ModelSettings, PositiveInt, ProbeSettings, Settings
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt
from securetune.defenses.data_defense import ChangedRows, DataContext
from securetune.defenses.datashield.activations import AnswerTokens, answer_tokens, layer_states
from securetune.defenses.datashield.compliance import AnswerStates, ComplianceDirection, find_direction
from securetune.defenses.datashield.contrast import Contrast, contrast_tokens, load_contrast
from securetune.defenses.registry import register_defense
from securetune.defenses.row_dropping import DropOptions, RowDrop
from securetune.errors import ConfigError, DataError
from securetune.models import ChatModel, check_model, load_skeleton
from securetune.models.layer_weights import decoder_layers


class DataShieldOptions(DropOptions):
    """Options of `datashield`.

    Attributes:
        layer: Layer whose output is projected, counted from 1. None: the one that tells acceptance from refusal best.
        harmful: Requests that the start model refuses: a file or data set, as `probes.harmful` takes it. None: the
            built-in ones, which no suite holds; for tiny world with its exact answers.
        harmless: Requests that it answers; both or neither must be given.
        pairs: Instead of both: JSON lines with a harmful `prompt`, and answers to it, one `accepted` and one `refused`.
        max_prompts: Most requests of each kind. 128: a mean over more moves little.
        max_new_tokens: Longest own answer of the start model. 64: a refusal, and the beginning of an answer.
        max_length: Tokens a row; what is beyond is not scored. 1024, as `training.max_length`.
        batch_size: Rows a forward pass. It changes no score beyond rounding.
    """

    layer: Annotated[int, Field(ge=1)] | None = None
    harmful: str | None = None
    harmless: str | None = None
    pairs: str | None = None
    max_prompts: PositiveInt = 128
    max_new_tokens: PositiveInt = 64
    max_length: PositiveInt = 1024
    batch_size: PositiveInt = 16

    @model_validator(mode="after")
    def _names_one_source(self) -> DataShieldOptions:
        if bool(self.harmful) != bool(self.harmless):
            raise ValueError("harmful and harmless must be given together")
        if self.harmful is not None and self.pairs is not None:
            raise ValueError("harmful and harmless, or pairs, name the requests; give one of them")
        return self


@register_defense("datashield")
class DataShield(RowDrop):
    """DataShield: the rows whose answers move furthest from the prompt towards compliance are dropped.

    One forward pass over the rows, up to the chosen layer, in the precision and on the device that `model` names; first
    the start model answers some 250 requests, which pass through all layers. Rows of which the cut leaves no answer
    have no score, and go last.
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
        """Read the requests, and see whether the model has the layer.

        Raises:
            InputError: If a file cannot be used, or there is no such layer.
        """
        self._contrast(model.name)
        if self.own.layer is not None and not check_model(model):  # a model that cannot be used is told of elsewhere
            count = len(decoder_layers(load_skeleton(model)))
            if self.own.layer > count:
                raise ConfigError(f"{self.name}.layer must be in [1, {count}] for {model.name}; got {self.own.layer}")

    def _contrast(self, model_name: str) -> Contrast:
        own = self.own
        probes = ProbeSettings(harmful=own.harmful, harmless=own.harmless, max_prompts=own.max_prompts)
        try:
            return load_contrast(model_name, probes, own.pairs)
        except DataError as error:
            raise DataError([f"{self.name}: {problem}" for problem in error.problems]) from None

    def read_hash(self, model_name: str) -> str | None:
        """Return the hash of the requests, and of the answers that are given."""
        return self._contrast(model_name).hash

    def prompts_used(self, model_name: str) -> Sequence[Prompt]:
        """Return the requests."""
        return [prompt for part in self._contrast(model_name).requests for prompt in part]

    def preview(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Return as many rows as will be left, without knowing which."""
        count = self.rows_after(len(rows), context.model_name)
        return self.without(rows, range(count, len(rows)))

    def change(self, rows: Sequence[Conversation], context: DataContext) -> ChangedRows:
        """Score the rows, and drop the highest."""
        count = len(rows) - self.rows_after(len(rows), context.model_name)
        if count == 0:
            return self.without(rows, ())
        chat, contrast = context.load(), self._contrast(context.model_name)
        direction = self._direction(chat, contrast, context)
        scores = self._scores(chat, rows, direction, context)
        ranked = sorted(range(len(rows)), key=lambda place: _rank(scores[place]), reverse=True)
        gone = ranked[:count]
        return self.without(rows, gone, tuple(scores), _facts(direction, contrast, scores, gone))

    def _direction(self, chat: ChatModel, contrast: Contrast, context: DataContext) -> ComplianceDirection:
        context.progress("compliance vector", 0, 1)
        own, layers = self.own, list(range(1, len(decoder_layers(chat.model)) + 1))
        tokens = contrast_tokens(chat, contrast, self._longest(chat), own.max_new_tokens, own.batch_size)
        accepted, refused = (_answer_states(chat, part, layers, own.batch_size) for part in tokens)
        context.progress("compliance vector", 1, 1)
        return find_direction(accepted, refused, layers, own.layer)

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


def _answer_states(chat: ChatModel, rows: Sequence[AnswerTokens], layers: list[int], batch_size: int) -> AnswerStates:
    parts = list(layer_states(chat, rows, layers, batch_size))
    order = torch.tensor([row for part in parts for row in part.rows]).argsort()
    answers = torch.cat([part.answers for part in parts], dim=1)[:, order]
    return AnswerStates(answers, torch.cat([part.before for part in parts], dim=1)[:, order])


def _rank(score: float | None) -> tuple[bool, float]:
    return (score is not None, score or 0.0)


def _facts(
    direction: ComplianceDirection, contrast: Contrast, scores: Sequence[float | None], gone: Sequence[int]
) -> dict[str, Any]:
    known = [score for score in scores if score is not None]
    dropped = [score for place in gone if (score := scores[place]) is not None]
    return {
        "layer": direction.layer,
        "separation_by_layer": {str(layer): round(each.separation, 6) for layer, each in direction.layers.items()},
        "explained_share_by_layer": {
            str(layer): round(each.explained_share, 6) for layer, each in direction.layers.items()
        },
        "answers": contrast.source,
        "answers_hash": contrast.hash,
        "requests_accepted": len(contrast.accepted),
        "requests_refused": len(contrast.refused),
        "lowest_dropped_score": min(dropped, default=None),
        "mean_score": sum(known) / len(known) if known else None,
        "rows_without_score": len(scores) - len(known),
    }
