"""A model's structure without its weights: names and shapes of a large one, in seconds and without its memory."""

from __future__ import annotations

from transformers import PreTrainedModel

from securetune.config import ModelSettings
from securetune.models.checks import adapter_base, load_config, make_skeleton
from securetune.models.registry import find_model


def load_skeleton(settings: ModelSettings) -> PreTrainedModel:
    """Build a model on torch's meta device from its configuration; of an adapter, its start model.

    Raises:
        ModelError: If the configuration cannot be read, or is not one of a causal language model.

    Example:
        >>> next(load_skeleton(ModelSettings(name="tiny-world")).parameters()).device.type
        'meta'
    """
    base = adapter_base(find_model(settings.name))
    whole = settings.model_copy(update={"name": base}) if base else settings
    return make_skeleton(load_config(whole, find_model(whole.name)), whole)
