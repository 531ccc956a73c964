"""The model card of `SecureSFTTrainer`: TRL's own, and what was done to keep the model's safety."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import trainer
from trl import SFTTrainer

from securetune.artifacts import RobustModules, environment, sha256_json, write_json, write_text
from securetune.defenses import Defense, Phase
from securetune.models import ProjectionModule
from securetune.models.registry import shown_name
from securetune.training.data_facts import DataFacts, describe_data
from securetune.training.model_card import (
    LIMITS,
    PhaseFigures,
    alignment_figures,
    manifest_facts,
    manifest_to_publish,
    modules_section,
    phases_section,
    selection_phrase,
    versions_section,
)
from securetune.training.secure_config import AUTO, SecureSFTConfig
from securetune.training.sharding import saved_whole

if TYPE_CHECKING:
    _Base = SFTTrainer
else:
    _Base = object  # mixed into a trainer; it must come before it

MANIFEST_FILE = "robust_modules.json"
_PROBE = "refusal_probe/"
_UPDATE = "update_norm/"


class CardOfMethod(_Base):
    """A trainer whose model is saved with a card that says how it was made, and with the manifest.

    With TRL's own `SFTConfig` the card is TRL's own too.

    Attributes:
        manifest: The robust modules, if they were given as a manifest or found by a search.
        given_rows: The training data as it was given.
    """

    _tag_names = [*SFTTrainer._tag_names, "securetune"]  # noqa: RUF012  (TRL declares no ClassVar either)

    defense: Defense
    robust_modules: list[str] | None
    manifest: RobustModules | None = None
    given_rows: Any = None
    _modules: Sequence[ProjectionModule]

    @abstractmethod
    def all_phases(self) -> list[Phase]:
        """Return the phases of this training."""

    @abstractmethod
    def log_of(self, phase: Phase) -> list[dict[str, Any]]:
        """Return what a phase has logged so far."""

    @cached_property
    def data_facts(self) -> DataFacts:
        """What is known of the training data; computed when first asked for."""
        return describe_data(self.given_rows)

    def create_model_card(  # type: ignore[override]  # TRL's takes other arguments than transformers'
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write TRL's card with sections on method, modules, data, figures, versions and limits; and the manifest.

        Args:
            model_name: As with TRL.
            dataset_name: As with TRL. None: the name of the hub data set, if the data came from one.
            tags: As with TRL.
        """
        if not isinstance(self.args, SecureSFTConfig):
            super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
            return
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        all_tags = {*([tags] if isinstance(tags, str) else tags or []), self.defense.name}
        super().create_model_card(
            model_name=model_name, dataset_name=dataset_name or self.data_facts.hub_name, tags=sorted(all_tags)
        )
        card = _without_missing_name((folder / "README.md").read_text(encoding="utf-8"), self._start_name())
        write_text(folder / "README.md", "\n".join([card.rstrip(), "", *self._own_sections()]))
        self._write_manifest(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers does; a model that the user saves gets its card and the manifest too.

        It is left without transformers' `training_args.bin`: a pickle, which holds the user's hub token and the
        machine's folders. Checkpoints, which are for this machine, keep theirs.
        """
        with nullcontext() if _internal_call else saved_whole(self.accelerator):
            super().save_model(output_dir, _internal_call)
        is_checkpoint = _internal_call and output_dir is not None
        if isinstance(self.args, SecureSFTConfig) and self.args.should_save and not is_checkpoint:
            (Path(output_dir or str(self.args.output_dir)) / trainer.TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if _internal_call or not isinstance(self.args, SecureSFTConfig) or not self.is_world_process_zero():
            return
        own = Path(str(self.args.output_dir))
        self.create_model_card(model_name=(self.args.hub_model_id or str(own)).rstrip("/").split("/")[-1])
        if output_dir is not None and Path(output_dir).resolve() != own.resolve():  # TRL writes its card to `own` only
            shutil.copyfile(own / "README.md", Path(output_dir) / "README.md")
            self._write_manifest(Path(output_dir))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push while training, without the pickle: transformers pushes no file whose name begins with `_`."""
        name = trainer.TRAINING_ARGS_NAME
        trainer.TRAINING_ARGS_NAME = f"_{name}" if isinstance(self.args, SecureSFTConfig) else name
        try:
            super()._push_from_checkpoint(checkpoint_folder)
        finally:
            trainer.TRAINING_ARGS_NAME = name

    def _write_manifest(self, folder: Path) -> None:
        if self.manifest is not None:
            write_json(folder / MANIFEST_FILE, manifest_to_publish(self.manifest))

    def _start_name(self) -> str:
        config = getattr(self.model, "config", None)
        return shown_name(str(getattr(config, "_name_or_path", None) or "")) or "a model without a name"

    def _own_sections(self) -> list[str]:
        args = self.args
        assert isinstance(args, SecureSFTConfig)
        return [
            "## Secure tuning",
            "",
            f"Start model: `{self._start_name()}`. Method: `{self.defense.name}` "
            f"({self.defense.source}), trained with securetune's `SecureSFTTrainer`. Learning rate "
            f"{args.learning_rate:g}, schedule `{_text(args.lr_scheduler_type)}`, seed {args.seed}; embeddings, norms "
            f"and head: {args.other_parameters}.",
            "",
            *self._data_section(),
            *phases_section([self._figures(phase) for phase in self.all_phases()]),
            *self._modules_section(),
            *versions_section(environment()),
            *LIMITS,
        ]

    def _data_section(self) -> list[str]:
        facts = self.data_facts
        name = f"`{facts.hub_name}`, revision `{facts.revision}`" if facts.hub_name else "not from the hub"
        rows = "streamed, so neither counted nor hashed" if facts.rows is None else f"{facts.rows:,} rows"
        content = f", content hash `{facts.content_hash}`" if facts.content_hash else ""
        return ["## Training data", "", f"{name[0].upper()}{name[1:]}; {rows}{content}.", ""]

    def _modules_section(self) -> list[str]:
        names = self.robust_modules or []
        if self.manifest is not None:
            assert isinstance(self.args, SecureSFTConfig)
            how = selection_phrase(self.manifest.selection)
            how += " at the start of this training (`auto`)" if self.args.robust_modules == AUTO else ""
            return modules_section(names, how, manifest_facts(self.manifest))
        if not names:
            return modules_section([], "")
        whole = sum(module.parameter_count for module in self._modules)
        chosen = sum(module.parameter_count for module in self._modules if module.name in names)
        share = f"They hold {chosen / whole:.1%} of the projection parameters; hash of the list `{sha256_json(names)}`."
        return modules_section(names, "named by the user, without a manifest", [share])

    def _figures(self, phase: Phase) -> PhaseFigures:
        rates = {group.name: group.learning_rate for group in phase.groups}
        figures = _figures_of(self.log_of(phase)) | alignment_figures(phase.alignment_steps)
        return PhaseFigures(phase.name, phase.steps, rates, figures)


def _figures_of(log: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the figures of a phase's log: losses, refusals at its beginning and end, and how far the groups moved."""
    found = {}
    if losses := _values(log, "loss"):
        found["training loss, nats per token"] = f"{losses[0]:.4g} at first, {losses[-1]:.4g} at last"
    if evaluated := _values(log, "eval_loss"):
        found["evaluation loss, nats per token"] = f"{evaluated[-1]:.4g}"
    for name in dict.fromkeys(key for row in log for key in row if key.startswith(_PROBE)):
        rates = _values(log, name)
        found[f"{name.removeprefix(_PROBE).replace('_', ' ')} in the probe"] = (
            f"{rates[0]:.1%} at first, {rates[-1]:.1%} at last"
        )
    for name in dict.fromkeys(key for row in log for key in row if key.startswith(_UPDATE)):
        found[f"relative update norm, {name.removeprefix(_UPDATE)}"] = f"{_values(log, name)[-1]:.4g}"
    return found


def _values(log: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in log if name in row]


def _without_missing_name(card: str, name: str) -> str:
    """TRL links to the model `None` if the start model was given as a folder; name it without a link."""
    return card.replace("[None](https://huggingface.co/None)", f"`{name}`")


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
