"""What trainers leave on a model, and how it is removed: a second trainer must find the model as the first did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from transformers import PreTrainedModel

from securetune.training.adapters import plain_model

_WRAPPED = ("forward", "_original_forward")
"""What TRL and accelerate set on the object, over the class's own; a second phase would wrap the wrapper."""


@contextmanager
def trainer_traces_removed(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Undo what a trainer does to a model besides training it: wrapped forwards, no cache, the training mode.

    The Trainer turns `use_cache` off in the configuration, which would be saved with the model and make its generation
    slow.
    """
    plain = plain_model(model)
    use_cache = plain.config.use_cache
    before = [
        (part, {name: part.__dict__[name] for name in _WRAPPED if name in part.__dict__}) for part in (model, plain)
    ]
    try:
        yield
    finally:
        for part, wrapped in before:
            for name in _WRAPPED:
                part.__dict__.pop(name, None)
            part.__dict__.update(wrapped)
        plain.config.use_cache = use_cache
        model.eval()
