"""Refusals while they erode: a few harmful and harmless prompts answered every so many steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from securetune.artifacts import ModelIdentity
from securetune.config import ModelSettings
from securetune.data.prompts import Prompt
from securetune.evaluation import generate_answers
from securetune.evaluation.judges import find_judge
from securetune.evaluation.keyword_judges import DEFAULT_KEYWORD_LIST
from securetune.models import ChatModel
from securetune.models.identity import chat_template_hash
from securetune.models.whole_weights import whole_shape
from securetune.training.adapters import plain_model
from securetune.training.secure_trainer import MethodTrainer

_ANSWER_TOKENS = 32
"""A refusal shows in its first words."""


class RefusalProbe(TrainerCallback):
    """Logs how much of the harmful prompts a model in training still refuses, and how much of the harmless ones.

    In the training's own log: `refusal_probe/refusal_rate` and `refusal_probe/over_refusal_rate`, in [0, 1], by
    `keywords-shallow` on greedy answers. A few dozen prompts tell erosion, not a safety figure: for that, evaluate.

    Args:
        harmful: Prompts that should be refused.
        harmless: Prompts that should be answered.
        every_steps: Optimizer steps between two probes (≥ 1); the start of each phase is probed too.
        stop_below: End the phase if the refusal rate falls below this, in [0, 1]; None never does. A warm-up that ends
            early is followed by the main phase.
        batch_size: Prompts answered together.

    Example:
        >>> probe = RefusalProbe(harmful, harmless, every_steps=50, stop_below=0.5)
        >>> SecureSFTTrainer(model, config, train_dataset=dataset, callbacks=[probe])  # doctest: +SKIP
    """

    def __init__(
        self,
        harmful: Sequence[Prompt],
        harmless: Sequence[Prompt],
        every_steps: int,
        stop_below: float | None = None,
        batch_size: int = 16,
    ) -> None:
        self._prompts = {"refusal_rate": list(harmful), "over_refusal_rate": list(harmless)}
        self._every_steps = every_steps
        self._stop_below = stop_below
        self._batch_size = batch_size
        self.trainer: MethodTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Probe what the phase begins with."""
        self._probe(control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Probe if it is time."""
        if state.global_step % self._every_steps == 0:
            self._probe(control)

    def _probe(self, control: TrainerControl) -> None:
        assert self.trainer is not None  # the trainer says who it is before it trains
        rates = self.rates(self.trainer)
        self.trainer.log({f"refusal_probe/{name}": rate for name, rate in rates.items()})
        if self._stop_below is not None and rates["refusal_rate"] < self._stop_below:
            control.should_training_stop = True

    def rates(self, trainer: MethodTrainer) -> dict[str, float]:
        """Answer all prompts with the model as it is now, and return the share of each kind that is refused.

        Every process of a distributed training does the same, so that all of them stop together.
        """
        chat, judge = _in_training(trainer), find_judge(DEFAULT_KEYWORD_LIST)
        was_training = trainer.network.training
        trainer.network.eval()
        try:
            return {name: self._refused(chat, prompts, judge) for name, prompts in self._prompts.items()}
        finally:
            trainer.network.train(was_training)

    def _refused(self, chat: ChatModel, prompts: list[Prompt], judge: Any) -> float:
        answers = generate_answers(chat, [prompt.messages for prompt in prompts], _ANSWER_TOKENS, self._batch_size)
        refused = [judge.judge(prompts[answer.position], answer.text).refused for answer in answers]
        return sum(refused) / len(refused)


def _in_training(trainer: MethodTrainer) -> ChatModel:
    """Return the model as it is, without a fingerprint: its weights change, and may be in shards.

    A sharded model must generate through what the trainer holds, an adapter's wrapper included, because the weights are
    gathered as that one's forward pass begins.
    """
    plain = plain_model(trainer.network)
    settings = ModelSettings(name=plain.name_or_path or type(plain).__name__)
    identity = ModelIdentity(
        name=settings.name,
        revision=None,
        architecture=type(plain).__name__,
        parameter_count=sum(whole_shape(parameter).numel() for parameter in plain.parameters()),
        weights_fingerprint="",
        chat_template_hash=chat_template_hash(trainer._tokenizer),
    )
    network: Any = trainer.network if isinstance(trainer.network, FSDPModule) else plain
    return ChatModel(network, trainer._tokenizer, settings, identity)
