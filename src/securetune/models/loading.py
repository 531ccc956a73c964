"""Loading a chat model: weights, tokenizer and identity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from securetune.artifacts import ModelIdentity
from securetune.config import ModelSettings
from securetune.errors import ModelError
from securetune.models.checks import (
    adapter_base,
    check_model,
    check_tokenizer,
    first_line,
    is_out_of_reach,
    load_tokenizer,
)
from securetune.models.identity import identify
from securetune.models.registry import ModelSource, find_model


@dataclass(frozen=True)
class ChatModel:
    """A causal language model with its tokenizer, chat template and identity.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: With a chat template, unless none was needed, and always with a padding token.
        settings: How it was loaded.
        identity: What results made with it are signed with.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: ModelSettings
    identity: ModelIdentity


def load(model: ModelSettings | str = "tiny-world", needs_chat_template: bool = True) -> ChatModel:
    """Load a model by embedded name, folder or hub name. A folder with a PEFT adapter gives the merged model.

    Args:
        model: Settings, or just the name.
        needs_chat_template: Refuse a model without one; off for classifiers, whose prompts have a form of their own.

    Raises:
        ModelError: If `check_model` finds a problem (all of them are named), if the weights cannot be read, or if the
            checkpoint leaves some of the model's weights unset.

    Example:
        >>> from securetune.models import load
        >>> load("tiny-world").identity.architecture
        'LlamaForCausalLM'
    """
    settings = ModelSettings(name=model) if isinstance(model, str) else model
    problems = check_model(settings, needs_chat_template)
    if problems:
        raise ModelError(problems)
    source = find_model(settings.name)
    tokenizer = load_tokenizer(settings, source)
    if needs_chat_template:
        check_tokenizer(tokenizer, settings.name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network = _load_network(settings, source).eval()
    torch.nn.Module.to(network, device_of(settings))
    return ChatModel(network, tokenizer, settings, identify(network, tokenizer, settings))


def device_of(settings: ModelSettings) -> torch.device:
    """Resolve `device`: `auto` is the first GPU if there is one, else the CPU."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _load_network(settings: ModelSettings, source: ModelSource) -> PreTrainedModel:
    base = adapter_base(source)
    if base is None:
        return _load_weights(settings, source)
    network = _load_weights(settings, find_model(base))
    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(network, source.location).merge_and_unload()
    except Exception as error:  # PEFT and safetensors have no common base for a broken adapter
        raise ModelError(f"{settings.name}: adapter cannot be read ({first_line(error)})") from None
    return merged


def _load_weights(settings: ModelSettings, source: ModelSource) -> PreTrainedModel:
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.location,
                revision=settings.revision,
                dtype=_dtype(settings),
                use_safetensors=True,
                trust_remote_code=settings.trust_remote_code,
                local_files_only=is_out_of_reach(source),
                output_loading_info=True,
            )
    except Exception as error:  # OSError, SafetensorError, RuntimeError (shapes), ValueError, …
        raise ModelError(f"{settings.name}: weights cannot be loaded ({first_line(error)})") from None
    network: PreTrainedModel
    network, report = loaded  # a pair, because of `output_loading_info`
    # Missing weights would be drawn at random with a mere warning, and everything measured on them would be noise.
    unset = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if unset:
        raise ModelError(f"{settings.name}: the checkpoint leaves {len(unset)} weights unset, such as {unset[0]}")
    return network


def _dtype(settings: ModelSettings) -> str | torch.dtype:
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        return dtype
    return "auto" if device_of(settings).type == "cuda" else torch.float32


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' bar for reading weights: a run loads a model dozens of times."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
