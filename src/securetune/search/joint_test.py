"""The test that decides: is the classifier still right when a whole set of modules is perturbed at once?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from securetune.config import SearchSettings
from securetune.data.prompts import Prompt
from securetune.features.classifier import SafetyClassifier
from securetune.features.hidden_states import make_batches
from securetune.features.perturbation import GaussianPerturbation, Perturbation
from securetune.features.replay import open_replay
from securetune.models import ChatModel, map_modules
from securetune.search.joint_prediction import JointPredictor


class JointTest:
    """Accuracy of an unchanged classifier on harmful prompts under joint perturbation.

    Args:
        chat: The model; perturbed in place and restored bit for bit.
        prompts: Harmful requests.
        classifier: Fitted on the intact model.
        settings: For seeds, batch size, and whether the closed form filters.
        perturbation: None: Gaussian noise.

    Attributes:
        intact_accuracy: Accuracy with nothing perturbed, in [0, 1].
    """

    _predictor: JointPredictor | None = None

    def __init__(
        self,
        chat: ChatModel,
        prompts: Sequence[Prompt],
        classifier: SafetyClassifier,
        settings: SearchSettings,
        perturbation: Perturbation | None = None,
    ) -> None:
        self._model = chat.model
        self._classifier = classifier
        self._perturbation = perturbation or GaussianPerturbation()
        self._seeds = range(settings.seed, settings.seed + settings.noise_seeds)
        self._modules = {module.name: module for module in map_modules(chat.model)}
        batches = make_batches(chat.tokenizer, prompts, settings.batch_size, chat.model.device)
        self._source = open_replay(chat.model, batches)
        self.intact_accuracy = self._accuracy_now()
        if settings.closed_form_filter and isinstance(self._perturbation, GaussianPerturbation):
            self._predictor = JointPredictor(chat, prompts, classifier, settings.batch_size)

    @property
    def largest_size(self) -> float:
        """Largest size that makes sense for the perturbation."""
        return self._perturbation.largest

    def predicted_accuracy(self, names: Collection[str], epsilon: float) -> float | None:
        """Return what `accuracy` should be to first order, without a pass through the model; None without a filter."""
        return self._predictor.accuracy(names, epsilon) if self._predictor else None

    def accuracy(self, names: Collection[str], epsilon: float, seeds: Sequence[int] | None = None) -> float:
        """Return the mean accuracy over seeds with all the named modules perturbed together.

        Args:
            names: Modules, as `map_modules` names them.
            epsilon: Size of the perturbation of each.
            seeds: Noise seeds; None takes those of the settings.

        Raises:
            KeyError: If the model has no module of a name.
        """
        modules = [self._modules[name] for name in sorted(names)]
        accuracies = []
        for seed in self._perturbation.draws(list(self._seeds if seeds is None else seeds)):
            with self._perturbation.applied(self._model, modules, epsilon, seed):
                accuracies.append(self._accuracy_now())
        return sum(accuracies) / len(accuracies)

    @torch.inference_mode()
    def _accuracy_now(self) -> float:
        return self._classifier.predict(self._source.final_states()).double().mean().item()
