"""TRL's `SFTTrainer` with the secure methods behind the same constructor; `securetune.SecureSFTTrainer` adds `auto`."""

from __future__ import annotations

import copy
import inspect
import math
import shutil
from collections.abc import Sized
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from securetune.artifacts import RobustModules, read_json, write_json
from securetune.defenses import MAIN_PHASE, Defense, DefenseContext, ParameterGroup, ParameterSets, Phase, find_defense
from securetune.errors import ConfigError
from securetune.models import map_modules
from securetune.models.parameter_names import parameters_by_name
from securetune.training.alignment_batches import AlignmentBatches, encode_alignment_rows
from securetune.training.checkpoints import last_complete_checkpoint
from securetune.training.deepspeed_engines import release_engine, require_new_engine, require_phases_fit
from securetune.training.model_traces import trainer_traces_removed
from securetune.training.packing import check_rows_stay_apart
from securetune.training.parameters import split_parameters
from securetune.training.phase_groups import PhaseOfMethod, freeze_all_but, trained_names
from securetune.training.question_rows import rows_for_trl
from securetune.training.robust_choice import chosen_modules, manifest_of, require_sensitivities
from securetune.training.secure_config import AUTO, SecureSFTConfig
from securetune.training.sharding import (
    checkpoint_once,
    expect_other_gradients,
    keep_masters,
    require_fsdp2,
    require_readable_checkpoints,
)
from securetune.training.step_moments import step_problems
from securetune.training.trainer_card import CardOfMethod
from securetune.training.update_norms import measure_update, take_snapshot
from securetune.training.weights import load_weights, save_weights

logger = logging.get_logger(__name__)

_COMPLETE = "complete.json"
_WEIGHTS = "weights.safetensors"
_STATE = "trainer_state.json"
_POSITIONS = list(inspect.signature(SFTTrainer.__init__).parameters)[3:]  # without self, model and args
_PASSED_ON = ("compute_loss_func", "compute_metrics", "optimizer_cls_and_kwargs", "preprocess_logits_for_metrics")
"""Arguments that the trainer of an earlier phase is given as they are."""


class MethodTrainer(PhaseOfMethod, CardOfMethod, SFTTrainer):
    """Fine-tunes with SWAT or ML-LR; with `method="ift"` it is TRL's `SFTTrainer`.

    `train()` does all phases. Each is a complete run with an optimizer and a schedule of its own, because what may
    train cannot change within one: the optimizer never hears of it, distributed wrappers break, and Adam's state is
    carried over. The warm-up's checkpoints lie in `output_dir/_warmup`, which is not pushed to the hub;
    `resume_from_checkpoint=True` goes on in whichever phase was interrupted, also between two. Every log has the
    `phase` and a learning rate for each group.

    Args:
        model: As with TRL: a model, a `PeftModel`, or a name.
        args: A `SecureSFTConfig`. An `SFTConfig` is plain fine-tuning, as with TRL.
        **arguments: Those of `SFTTrainer`. Rows of a question and an answer, such as Alpaca's, are data too.

    Raises:
        ConfigError: If the method needs robust modules and has none, or nothing would be left to protect.
        ArtifactError: If the robust modules are not this model's.
        ModelError: If the model's projections are not known.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SecureSFTConfig | SFTConfig | TrainingArguments | None = None,
        *positional: Any,
        **arguments: Any,
    ) -> None:
        secure = args if isinstance(args, SecureSFTConfig) else None
        given = dict(zip(_POSITIONS, positional, strict=False)) | arguments
        self._passed_on: dict[str, Any] = {name: given.get(name) for name in _PASSED_ON}
        self.defense: Defense = find_defense(
            secure.method if secure else "ift", secure.own_options() if secure else None
        )
        self.robust_modules: list[str] | None = None
        self.given_rows = given.get("train_dataset")
        self._phases: list[Phase] = []
        self._start: dict[str, Tensor] | None = None
        self._sets: ParameterSets | None = None
        self._known_squares: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        if secure is not None and given.get("formatting_func") is None:
            given |= {name: rows_for_trl(given.get(name), secure) for name in ("train_dataset", "eval_dataset")}
        super().__init__(model, args, **given)
        if secure is not None:
            self._require_separate_rows(secure)
            self._prepare_method(secure)

    def _prepare_method(self, secure: SecureSFTConfig) -> None:
        """Find the robust modules and split what trains; nothing is trained or written yet."""
        if secure.method == "ift":
            return
        if self.optimizer is not None:
            raise ConfigError(
                f'optimizers: method "{secure.method}" makes an optimizer for each phase, with groups of its own. Give '
                "optimizer_cls_and_kwargs or `optim` instead."
            )
        if self.defense.adapters_only and not isinstance(self.network, PeftModel):
            raise ConfigError(f'method "{secure.method}" works on adapters: give a peft_config')
        require_fsdp2(self.accelerator)
        require_phases_fit(self.accelerator, self.defense, analyzes=secure.robust_modules == AUTO)
        if problems := step_problems(self):
            raise ConfigError(problems)
        self._modules = map_modules(self.network)
        choice = self.found_automatically() if secure.robust_modules == AUTO else secure.robust_modules
        if choice is not None:
            self.manifest = manifest_of(choice)
            self.robust_modules = chosen_modules(choice, self.network, self._tokenizer, self._modules)
        require_sensitivities(self.manifest, self.defense, "robust_modules")
        self._settings = secure.secure_settings()
        self._sets = split_parameters(self.network, self._modules, self.robust_modules, self._settings, self.defense)
        self.alignment_batches = self._own_rows()

    def _own_rows(self) -> AlignmentBatches | None:
        """Encode the rows that the method has besides the training data."""
        length = getattr(self.args, "max_length", None) or self.network.config.get_text_config().max_position_embeddings
        rows = encode_alignment_rows(self.defense, self._path_or_name(), self._tokenizer, length).rows
        size, processes = self.args.per_device_train_batch_size, self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        rank = self.accelerator.process_index
        return AlignmentBatches(rows, self._tokenizer, seed, size, processes, rank) if rows else None

    def _require_separate_rows(self, secure: SecureSFTConfig) -> None:
        """Refuse a model that would let packed rows see each other, which TRL does with a warning at most."""
        if secure.packing and not self.padding_free:
            logger.warning_once(
                f'packing_strategy "{secure.packing_strategy}" cuts rows where a sequence is full, and those in one '
                'sequence see each other; with "bfd" they do not.'
            )
        elif self.padding_free and not is_deepspeed_zero3_enabled():  # whose weights are in pieces until it trains
            first = islice(iter(self.train_dataset or ()), 2)
            rows = Dataset.from_list([{"input_ids": row["input_ids"]} for row in first])
            setting = "packing" if secure.packing else "padding_free"
            check_rows_stay_apart(self.network, self._tokenizer, rows, bool(secure.bf16), setting)

    def found_automatically(self) -> RobustModules:
        """Return the modules that `robust_modules="auto"` means.

        Raises:
            ConfigError: Always; what analyzes and searches is above this class.
        """
        raise ConfigError('robust_modules "auto" needs securetune.SecureSFTTrainer')

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train all phases.

        Args:
            resume_from_checkpoint: True: from the last checkpoint of whichever phase was interrupted; if there is none,
                from the beginning. A path: of the main phase, as with transformers.
            trial: As with transformers.
            ignore_keys_for_eval: As with transformers.
        """
        self._introduce()
        if resume_from_checkpoint:
            require_readable_checkpoints(self.network, self.accelerator)
        if self._sets is None:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        require_new_engine(self)
        context = self._context(self._sets)
        self.defense.before_training(self.network, context)
        self._phases = self.defense.phases(context)
        *before, self.phase = self._phases
        checkpoint = self._main_checkpoint(resume_from_checkpoint)
        trainable = frozenset(name for name, value in parameters_by_name(self.network) if value.requires_grad)
        keep_masters(self.network, self.accelerator)
        for phase in before if checkpoint is None else []:
            self._train_before(phase, resume=bool(resume_from_checkpoint))
            set_seed(self.args.seed)  # dropout must not depend on whether the phase ran just now or was read
        freeze_all_but(self.network, trained_names(self.phase) & trainable)
        expect_other_gradients(self.network)
        checkpoint_once(self.network, self.accelerator)
        if self._logs_update_norms:
            self._start = take_snapshot(self.network)
        self._introduce()
        self.optimizer = self.lr_scheduler = None  # those of an earlier train() would be taken up
        output: TrainOutput = super().train(checkpoint, trial, ignore_keys_for_eval)
        freeze_all_but(self.network, trainable)
        self.defense.after_training(self.network, context)
        return output

    def _introduce(self) -> None:
        """Tell callbacks that ask for it which trainer is at work: transformers tells them the model only."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "trainer"):
                callback.trainer = self

    def _main_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        if isinstance(resume_from_checkpoint, str):
            return resume_from_checkpoint
        return last_complete_checkpoint(Path(str(self.args.output_dir))) if resume_from_checkpoint else None

    def _context(self, sets: ParameterSets) -> DefenseContext:
        settings = self._settings
        steps = self._main_steps()
        rows: Any = self.train_dataset or ()
        if (epochs := getattr(self.args, "warmup_phase_epochs", None)) is not None:
            settings = settings.model_copy(update={"warmup_phase_steps": self._steps_of(epochs)})
        tokenizer = self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerBase) else None
        return DefenseContext(
            settings,
            self.args.learning_rate,
            steps,
            sets,
            modules=map_modules(self.network),
            tokenizer=tokenizer,
            model_name=self._path_or_name(),
            rows=rows,
            sensitivities=self.manifest.sensitivities if self.manifest else {},
            folder=Path(str(self.args.output_dir)) / "_method",  # the Trainer pushes none that begins with `_`
        )

    def _path_or_name(self) -> str:
        return str(getattr(self.network.config, "_name_or_path", ""))

    def _main_steps(self) -> int:
        return self.args.max_steps if self.args.max_steps > 0 else self._steps_of(self.args.num_train_epochs)

    def _steps_of(self, epochs: float) -> int:
        """Return the optimizer steps of passes over the data, as transformers counts them.

        Raises:
            ConfigError: If the data has no length.
        """
        rows = self.train_dataset
        if not isinstance(rows, Sized):
            raise ConfigError("a data set without a length needs max_steps, and warmup_phase_steps for swat")
        at_once = self.args.per_device_train_batch_size * max(1, self.args.n_gpu) * self.args.world_size
        batches = len(rows) // at_once if self.args.dataloader_drop_last else math.ceil(len(rows) / at_once)
        return math.ceil(epochs * math.ceil(batches / self.args.gradient_accumulation_steps))

    def _train_before(self, phase: Phase, resume: bool) -> None:
        """Bring the model to the end of a phase before the main one: by its result, by going on, or from its start."""
        folder = self._folder_before(phase)
        if resume and (folder / _COMPLETE).exists() and read_json(folder / _COMPLETE)["steps"] == phase.steps:
            load_weights(self.network, folder / _WEIGHTS)
            return
        if not resume and self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # a later resume must not find what an earlier training left
        (folder / _COMPLETE).unlink(missing_ok=True)
        checkpoint = last_complete_checkpoint(folder) if resume else None
        with trainer_traces_removed(self.network):
            trainer = _EarlierPhase(self, phase, folder)
            trainer.train(resume_from_checkpoint=checkpoint)
            trainer.accelerator.wait_for_everyone()
            release_engine(trainer)
        save_weights(self.network, trained_names(phase), folder / _WEIGHTS, here=self.args.should_save)
        if self.args.should_save:
            trainer.state.save_to_json(str(folder / _STATE))
            write_json(folder / _COMPLETE, {"steps": phase.steps})
        self.accelerator.wait_for_everyone()

    def _folder_before(self, phase: Phase) -> Path:
        """Return the folder of a phase before the main one; the Trainer pushes no folder that begins with `_`."""
        return Path(str(self.args.output_dir)) / f"_{phase.name}"

    def all_phases(self) -> list[Phase]:
        """Return the phases of this training, also before it begins."""
        if self._sets is None:
            return [Phase(MAIN_PHASE, self._main_steps(), (ParameterGroup("all", (), self.args.learning_rate),))]
        return self._phases or self.defense.phases(self._context(self._sets))

    def log_of(self, phase: Phase) -> list[dict[str, Any]]:
        """Return what a phase has logged; one before the main one, as soon as it is complete."""
        if phase.name == self.all_phases()[-1].name:
            return self.state.log_history
        path = self._folder_before(phase) / _STATE
        return TrainerState.load_from_json(str(path)).log_history if path.exists() else []

    def earlier_arguments(self, phase: Phase, folder: Path) -> SFTConfig:
        """Return the training arguments of a phase before the main one."""
        arguments = copy.copy(self.args)
        assert isinstance(arguments, SFTConfig)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        arguments.output_dir = str(folder)
        arguments.max_steps = phase.steps
        arguments.learning_rate = max(group.learning_rate for group in phase.groups)
        arguments.data_seed = seed + phase.seed_offset
        arguments.load_best_model_at_end = False
        arguments.push_to_hub = False
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}  # the main trainer has prepared it
        return arguments

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the state that marks a checkpoint complete is written next

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with the method's groups."""
        if not self._phases:
            plain: torch.optim.Optimizer = SFTTrainer.create_optimizer(self, model)
            return plain
        return super().create_optimizer(model)

    def _get_learning_rate(self) -> float:
        """Note each group's rate when the Trainer asks for the first one's: that of the step that is logged."""
        self._rates = self.current_rates() if self._phases else {}
        rate: float = super()._get_learning_rate()
        return rate

    @property
    def _logs_update_norms(self) -> bool:
        chosen = getattr(self.args, "log_update_norms", None)
        return isinstance(self.network, PeftModel) if chosen is None else chosen

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what TRL logs, the phase, and with a loss each group's learning rate and update norm.

        What TRL adds must be added to `logs` itself: `evaluate()` returns them, and `metric_for_best_model` may name
        one.
        """
        own = self.group_logs() if "loss" in logs else self._phase_log()
        shown = {**logs, **own}
        super().log(shown, start_time)
        logs.update({name: value for name, value in shown.items() if name not in own})

    def _phase_log(self) -> dict[str, Any]:
        return {"phase": self.phase.name} if self._phases else {}

    def group_logs(self) -> dict[str, Any]:
        """Return the phase, and each group's learning rate and, if they are logged, relative update norm."""
        if not self._phases:
            return {}
        found = self._phase_log() | {f"learning_rate/{group}": rate for group, rate in self._rates.items()}
        if self._start is not None:
            update = measure_update(
                self.network, self._start, self._modules, set(self.robust_modules or ()), self._known_squares
            )
            norms = {"robust": update.inside, "rest": update.outside, "other": update.other}
            found |= {f"update_norm/{name}": norm.relative for name, norm in norms.items() if norm is not None}
        return found


class _EarlierPhase(MethodTrainer):
    """A complete run of a phase before the main one, on the same model and the data as the main trainer prepared it."""

    def __init__(self, main: MethodTrainer, phase: Phase, folder: Path) -> None:
        freeze_all_but(main.network, trained_names(phase))  # before the optimizer and any wrapper are made
        self.phase, self._phases = phase, [phase]
        self.defense, self.robust_modules, self._modules = main.defense, main.robust_modules, main._modules
        self.alignment_batches = main.alignment_batches
        self._start = self._sets = None
        self._rates = {}
        self._known_squares = main._known_squares
        SFTTrainer.__init__(
            self,
            main.network,
            main.earlier_arguments(phase, folder),
            data_collator=None if main.padding_free else main.data_collator,  # TRL then insists on its own
            train_dataset=main.train_dataset,
            eval_dataset=main.eval_dataset,
            processing_class=main._tokenizer,
            **main._passed_on,
        )
        self._take_callbacks_of(main)
        if self._logs_update_norms:
            self._start = take_snapshot(main.network)

    def create_model_card(self, *arguments: Any, **named: Any) -> None:
        """Write none: the model is not finished."""

    def _build_accelerator_args(self, **arguments: Any) -> dict[str, Any]:
        """Leave out DeepSpeed's plugin: accelerate has it from the main trainer, and refuses to be given it twice."""
        found: dict[str, Any] = super()._build_accelerator_args(**arguments)
        return found | {"deepspeed_plugin": None}

    def _take_callbacks_of(self, main: MethodTrainer) -> None:
        """Have the callbacks that the main trainer has by now: those of the user too, and none that was removed."""
        kinds = {type(callback) for callback in main.callback_handler.callbacks}
        for callback in [*self.callback_handler.callbacks]:
            if type(callback) not in kinds:
                self.remove_callback(callback)
        own = {type(callback) for callback in self.callback_handler.callbacks}
        for callback in main.callback_handler.callbacks:
            if type(callback) not in own:
                self.add_callback(callback)
