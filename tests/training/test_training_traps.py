"""Each known way in which two-phase training goes wrong without an error, and the test that fails if we do so.

Frozen before `train()`, unfrozen later, so that nothing moves:
    test_secure_trainer.test_the_warm_up_trains_the_robust_modules_alone,
    test_identities.test_main_phase_moves_everything
Adam's step counters differ after the switch: test_each_phase_has_an_optimizer_of_its_own (here),
    test_phase_trainer.test_phases_are_two_complete_runs
Replicas of DDP diverge in silence: test_distributed.test_two_processes_train_what_one_does
A learning rate of 0 in place of freezing: test_what_is_frozen_costs_no_state_and_no_clipping (here)
`requires_grad` is lost between an evaluation and the unfreezing: test_an_evaluated_warm_up_hands_on_everything (here)
An optimizer with an empty group, on which DeepSpeed fails: test_no_group_is_empty (here)
FSDP1 joins what trains and what does not: test_what_shards_parameters_together_is_refused (here)
DeepSpeed does not follow a changed set of trainable parameters: test_deepspeed.test_two_processes_train_what_one_does,
    test_deepspeed.test_a_killed_training_goes_on; and it would make an optimizer without the groups, or overwrite what
    a method does after a step: test_what_deepspeed_would_do_otherwise_is_refused (here)
A distributed test that runs in one process without a word: `results` in test_distributed asserts number and wrapper
Resuming with another set of trainable parameters:
    test_secure_trainer.test_an_interrupted_training_goes_on_in_its_phase, test_sigkill.test_killed_at_a_random_step
Two `train()` calls on one trainer carry the optimizer over: test_a_second_training_begins_with_a_new_optimizer (here)
One schedule over both phases: test_the_main_phase_has_trls_schedule (here),
    test_phase_trainer.test_each_phase_runs_the_whole_schedule
The log shows the first group's rate only, or that of the next step:
    test_trainer_logs.test_every_groups_rate_is_its_own
A pattern that matches no LoRA parameter: test_phase_trainer.test_lora_names_belong_to_their_modules,
    test_phase_trainer.test_a_group_that_matches_nothing_is_an_error
Activation checkpointing with frozen embeddings: test_activation_checkpointing_changes_nothing (here),
    test_phase_trainer.test_gradient_checkpointing_changes_nothing
A fused loss that hides the logits, or leaves an adapter on the head as it is: test_metrics_are_computed_in_both_phases,
    test_an_adapter_on_the_head_is_refused (here)
A checkpoint that a kill left half-written: test_sigkill.test_killed_while_writing
Prepared rows are prepared again in the warm-up: test_the_loss_on_assistant_turns_alone_in_both_phases (here)
TRL's telemetry: test_telemetry
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from secure_script import LORA, SHORT, UPPER, differing, secure, start, weights
from short_training import make_rows
from tiny_models import CHAT_TEMPLATE
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from securetune import SecureSFTTrainer
from securetune.defenses import find_defense
from securetune.errors import ConfigError
from securetune.training.deepspeed_engines import require_new_engine, require_phases_fit
from securetune.training.sharding import require_fsdp2

ANSWER = "' <assistant> ' + message['content'] + ' <eos>' }}"
MARKED = CHAT_TEMPLATE.replace(
    "{{ " + ANSWER, "{{ ' <assistant> ' }}{% generation %}{{ message['content'] + ' <eos>' }}{% endgeneration %}"
)
ROWS = Dataset.from_list(make_rows())


class Watch(TrainerCallback):
    """Calls a function at the beginning and the end of each phase with its name and its optimizer."""

    def __init__(self, begin: Callable[[str, Any], None], end: Callable[[str, Any], None]) -> None:
        self.begin, self.end = begin, end

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.begin(phase_of(args), getattr(optimizer, "optimizer", optimizer))

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.end(phase_of(args), getattr(optimizer, "optimizer", optimizer))


def phase_of(args: Any) -> str:
    return "warmup" if args.output_dir.endswith("_warmup") else "main"


def ignore(*_: Any) -> None:
    """Watch nothing here."""


def counted(optimizer: torch.optim.Optimizer) -> tuple[int, set[int]]:
    """Return the number of parameters with a state, and the steps they have made."""
    return len(optimizer.state), {int(state["step"]) for state in optimizer.state.values()}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_each_phase_has_an_optimizer_of_its_own(adapter: dict | None, tiny_model_dir: Path, tmp_path: Path):
    """With a state for what it trains and for nothing else, all of it at the phase's own number of steps."""
    found: dict[str, tuple[int, set[int]]] = {}
    watch = Watch(ignore, lambda phase, optimizer: found.__setitem__(phase, counted(optimizer)))
    trainer = start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir, adapter, callbacks=[watch])
    trainer.train()
    assert found == {"warmup": (len(trainer._sets.robust), {4}), "main": (len(trainer._sets.all), {6})}


@pytest.mark.parametrize("method", ["swat", "ml-lr"])
def test_what_is_frozen_costs_no_state_and_no_clipping(method: str, tiny_model_dir: Path, tmp_path: Path):
    """The frozen have no optimizer state, and the norm that is clipped is that of the others' gradients."""
    states: list[int] = []
    norms: list[float] = []

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            assert gradients
            assert {name.removesuffix(".weight") for name in gradients} == set(UPPER)
            norms.append(float(torch.stack([value.norm() for value in gradients.values()]).norm()))
            control.should_training_stop = True

    config = secure(tmp_path, method=method, learning_rate_ratio=0.0, max_grad_norm=1e9, max_steps=1)
    config.warmup_phase_steps = 1
    watch = Watch(ignore, lambda _, optimizer: states.append(len(optimizer.state)))
    trainer = start(SecureSFTTrainer, config, tiny_model_dir, callbacks=[watch, Norms()])
    if method == "swat":
        *before, _ = trainer.all_phases()
        trainer._train_before(before[0], resume=False)
        logged = trainer.log_of(before[0])
    else:
        trainer.train()
        logged = trainer.state.log_history
    assert states == [len(UPPER)]
    assert [row["grad_norm"] for row in logged if "grad_norm" in row] == pytest.approx(norms, rel=1e-5)


def test_an_evaluated_warm_up_hands_on_everything(tiny_model_dir: Path, tmp_path: Path):
    """Train, evaluate, unfreeze: every tensor moves in the main phase."""
    config = secure(tmp_path, eval_strategy="steps", eval_steps=1.0)
    begins: list[dict[str, torch.Tensor]] = []
    trainer = start(SecureSFTTrainer, config, tiny_model_dir, eval_dataset=ROWS.select(range(4)))
    trainer.add_callback(Watch(lambda *_: begins.append(weights(trainer)), ignore))
    trainer.train()
    assert set(differing(begins[1], weights(trainer))) == set(weights(trainer))


@pytest.mark.parametrize("method", ["swat", "ml-lr"])
def test_no_group_is_empty(method: str, tiny_model_dir: Path, tmp_path: Path):
    """In no phase has the optimizer a group without parameters, adapters without norms included."""
    sizes: list[list[int]] = []
    watch = Watch(lambda _, o: sizes.append([len(group["params"]) for group in o.param_groups]), ignore)
    start(
        SecureSFTTrainer, secure(tmp_path, method=method, weight_decay=0.1), tiny_model_dir, LORA, callbacks=[watch]
    ).train()
    assert sizes
    assert all(size > 0 for group in sizes for size in group)


def accelerator_with(**plugins: Any) -> Any:
    """Stand for an accelerator; the real ones need a GPU, or DeepSpeed."""
    accelerator = object.__new__(Accelerator)
    accelerator.state = SimpleNamespace(**{"fsdp_plugin": None, "deepspeed_plugin": None, **plugins})
    return accelerator


def test_what_shards_parameters_together_is_refused():
    """FSDP1, in one sentence that names the setting; FSDP2 and no sharding are not."""
    require_fsdp2(accelerator_with())
    require_fsdp2(accelerator_with(fsdp_plugin=SimpleNamespace(fsdp_version=2)))
    with pytest.raises(ConfigError, match=r"fsdp_version must be 2: .* Got 1"):
        require_fsdp2(accelerator_with(fsdp_plugin=SimpleNamespace(fsdp_version=1)))


def test_what_deepspeed_would_do_otherwise_is_refused():
    """An optimizer or schedule of its own, a method that acts after steps, the analysis of divided weights."""
    plain = accelerator_with(deepspeed_plugin=SimpleNamespace(zero_stage=3, deepspeed_config={"bf16": {}}))
    require_phases_fit(plain, find_defense("swat"), analyzes=False)
    require_phases_fit(accelerator_with(), find_defense("l2-sp"), analyzes=True)
    whole = accelerator_with(deepspeed_plugin=SimpleNamespace(zero_stage=2, deepspeed_config={}))
    require_phases_fit(whole, find_defense("ml-lr"), analyzes=True)
    own = SimpleNamespace(zero_stage=3, deepspeed_config={"optimizer": {}, "scheduler": {}})
    with pytest.raises(ConfigError) as caught:
        require_phases_fit(accelerator_with(deepspeed_plugin=own), find_defense("protected-subspace"), analyzes=True)
    sentences = ('has a "optimizer"', 'has a "scheduler"', '"protected-subspace" changes weights', '"auto" needs whole')
    for problem, sentence in zip(caught.value.problems, sentences, strict=True):
        assert sentence in problem
    held = object.__new__(Trainer)
    held.is_deepspeed_enabled, held.deepspeed = True, object()
    with pytest.raises(ConfigError, match="Make a new trainer"):
        require_new_engine(held)


def test_a_second_training_begins_with_a_new_optimizer(tiny_model_dir: Path, tmp_path: Path):
    """`train()` twice on one trainer: each phase of the second begins with an optimizer that has made no step."""
    found: list[tuple[str, int]] = []
    watch = Watch(lambda phase, optimizer: found.append((phase, len(optimizer.state))), ignore)
    trainer = start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir, callbacks=[watch])
    trainer.train()
    trainer.train()
    assert found == [("warmup", 0), ("main", 0)] * 2


def test_the_main_phase_has_trls_schedule(tiny_model_dir: Path, tmp_path: Path):
    """Its learning rates are those of a run of TRL's without any warm-up phase, step for step."""
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 2.0}
    plain = start(SFTTrainer, SFTConfig(str(tmp_path / "trl"), **SHORT, **schedule), tiny_model_dir)
    ours = start(SecureSFTTrainer, secure(tmp_path / "ours", **schedule), tiny_model_dir)
    rates = []
    for trainer in (plain, ours):
        trainer.train()
        rates.append([row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row])
    assert len(rates[0]) == 6
    assert rates[0] == rates[1]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("adapter", [None, {**LORA, "lora_dropout": 0.0}], ids=["full", "lora"])
def test_activation_checkpointing_changes_nothing(
    reentrant: bool, adapter: dict | None, tiny_model_dir: Path, tmp_path: Path
):
    """With embeddings frozen in the warm-up, or for good under LoRA, both kinds end with the weights of neither."""
    short = {"max_steps": 2, "warmup_phase_steps": 2, "save_strategy": "no", "warmup_steps": 0.0}
    kinds: list[dict[str, Any]] = [
        {}, {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ]  # fmt: skip
    ends, begins = [], []
    for number, settings in enumerate(kinds):
        trainer = start(SecureSFTTrainer, secure(tmp_path / str(number), **short, **settings), tiny_model_dir, adapter)
        begins.append(weights(trainer))
        trainer.train()
        ends.append(weights(trainer))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], rtol=1e-4, atol=1e-5), name
    assert differing(begins[1], ends[1]) == differing(begins[0], ends[0]) != []


def test_an_adapter_on_the_head_is_refused(tiny_model_dir: Path, tmp_path: Path):
    """TRL's loss reads the head's own weight, so its adapter would never train; TRL's sentence is passed on."""
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        start(SecureSFTTrainer, secure(tmp_path), tiny_model_dir, {**LORA, "target_modules": ["q_proj", "lm_head"]})


def test_the_loss_on_assistant_turns_alone_in_both_phases(tiny_model_dir: Path, tmp_path: Path):
    """The warm-up learns from the rows as the main trainer prepared them, with the labels of the answers only."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = MARKED
    seen: dict[str, list[int]] = {}

    class Noted(SecureSFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            seen.setdefault("main", inputs["labels"][0].tolist())
            return super().compute_loss(model, inputs, *arguments, **named)

    trainer = Noted(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32),
        secure(tmp_path, assistant_only_loss=True),
        train_dataset=ROWS,
        processing_class=tokenizer,
    )
    trainer.train()
    warmup, main = (trainer.log_of(phase) for phase in trainer.all_phases())
    assert warmup[0]["loss"] > 0
    assert main[0]["loss"] > 0
    assert 0 < sum(label != -100 for label in seen["main"]) < len(seen["main"]) / 2 + 4


def test_metrics_are_computed_in_both_phases(tiny_model_dir: Path, tmp_path: Path):
    """From what the user's own function makes of the logits; also if it is given by position."""
    shapes: set[tuple[int, ...]] = set()

    def measure(prediction: Any) -> dict[str, float]:
        shapes.add(prediction.predictions.shape)
        return {"own": 1.0}

    folder = tiny_model_dir
    trainer = SecureSFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        secure(tmp_path, eval_strategy="steps", eval_steps=4.0),
        None,
        ROWS,
        ROWS.select(range(4)),
        AutoTokenizer.from_pretrained(folder),
        compute_metrics=measure,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    trainer.train()
    assert {len(shape) for shape in shapes} == {2}
    for phase in trainer.all_phases():
        assert {row["eval_own"] for row in trainer.log_of(phase) if "eval_own" in row} == {1.0}
    assert trainer.data_facts.rows == 40
