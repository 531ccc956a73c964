"""`SecureSFTTrainer`: secure tuning by one changed line in a script that uses TRL."""

from __future__ import annotations

from typing import Any

from accelerate.utils import broadcast_object_list

from securetune.analysis import analyze_robustness
from securetune.artifacts import RobustModules
from securetune.config import AnalysisSettings, ModelSettings, ProbeSettings, SearchSettings
from securetune.data.prompts import load_probes
from securetune.models import ChatModel, identify
from securetune.search import search_robust_modules
from securetune.training.adapters import plain_model
from securetune.training.secure_trainer import MethodTrainer


class SecureSFTTrainer(MethodTrainer):
    """TRL's `SFTTrainer`, which keeps the model's safety: SWAT or ML-LR, with the same constructor.

    With `robust_modules="auto"` the model is analyzed and searched before it is trained, with the built-in probe
    prompts and default settings; on the main process, while the others wait.

    Example:
        >>> from securetune import SecureSFTConfig, SecureSFTTrainer
        >>> config = SecureSFTConfig("tuned", method="swat", robust_modules="robust_modules.json")  # doctest: +SKIP
        >>> SecureSFTTrainer(model, config, train_dataset=dataset).train()  # doctest: +SKIP
    """

    def found_automatically(self) -> RobustModules:
        """Analyze the model and search.

        Raises:
            RunError: If the model does not tell the probes apart, or no module is robust.
        """
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            found = [_searched(self)]
        broadcast_object_list(found)
        manifest: RobustModules = found[0]
        return manifest


def _searched(trainer: MethodTrainer) -> RobustModules:
    network = plain_model(trainer.network)
    settings = ModelSettings(name=network.name_or_path or type(network).__name__)
    chat = ChatModel(network, trainer._tokenizer, settings, identify(network, trainer._tokenizer, settings))
    probes = load_probes(ProbeSettings(), settings.name)
    was_training = network.training
    network.eval()
    try:
        report = analyze_robustness(chat, probes, AnalysisSettings(controls=False))
        return search_robust_modules(chat, probes, report, SearchSettings()).manifest
    finally:
        network.train(was_training)
