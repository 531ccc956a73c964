"""Which model a result belongs to, so that a file made for another one is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from securetune.artifacts import ModelIdentity, sha256_text
from securetune.config import ModelSettings
from securetune.errors import ArtifactError
from securetune.models.whole_weights import whole, whole_shape

VALUES_PER_PARAMETER = 64
"""How many values of each parameter go into the fingerprint."""


class ParameterSample(NamedTuple):
    """What the fingerprint takes of one parameter.

    Attributes:
        name: As in `named_parameters()`.
        shape: Of the whole parameter.
        values: Its first `VALUES_PER_PARAMETER` values, or all if it has fewer.
    """

    name: str
    shape: tuple[int, ...]
    values: Float[Tensor, " value"]


def identify(model: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings) -> ModelIdentity:
    """Describe a loaded model; adapters that PEFT has put into it do not count."""
    return ModelIdentity(
        name=settings.name,
        revision=settings.revision,
        architecture=type(model).__name__,
        parameter_count=sum(whole_shape(parameter).numel() for _, parameter in _own_parameters(model)),
        weights_fingerprint=weights_fingerprint(model),
        chat_template_hash=chat_template_hash(tokenizer),
    )


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template's text; no template has the hash of the empty text."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several named templates; `render_prompt` uses the default one
        template = template.get("default", "")
    return sha256_text(template or "")


def weights_fingerprint(model: nn.Module) -> str:
    """Hash every parameter's name, shape and first 64 values, rounded to bfloat16.

    Training moves every tensor it touches, so a sample of each tells two models apart, and reading 64 values of each
    takes milliseconds where hashing an 8B model takes a minute.
    """
    return fingerprint_of_samples(
        ParameterSample(name, tuple(whole_shape(parameter)), whole(parameter).flatten()[:VALUES_PER_PARAMETER])
        for name, parameter in _own_parameters(model)
    )


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


def fingerprint_of_samples(samples: Iterable[ParameterSample]) -> str:
    """Hash the samples of all parameters of a model, in whatever order they come."""
    digest = hashlib.sha256()
    for name, shape, values in sorted(samples, key=lambda sample: sample.name):
        digest.update(f"{name} {shape} ".encode())
        digest.update(values.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()


def check_same_model(artifact: ModelIdentity, here: ModelIdentity, path: str) -> None:
    """Refuse a file that was made for another model.

    Args:
        artifact: The identity written in the file.
        here: The identity of the model it is about to be used with.
        path: The file, for the message.

    Raises:
        ArtifactError: If the architecture, the number of parameters, the weights or the chat template differ.
    """
    problems = []
    same_shape = (artifact.architecture, artifact.parameter_count) == (here.architecture, here.parameter_count)
    if not same_shape:
        problems.append(
            f'{path}: was made for "{artifact.name}" ({artifact.architecture}, {artifact.parameter_count:,} '
            f'parameters), but the model here is "{here.name}" ({here.architecture}, {here.parameter_count:,} '
            "parameters)"
        )
    elif artifact.weights_fingerprint != here.weights_fingerprint:
        problems.append(
            f'{path}: was made for "{artifact.name}", whose weights differ from those of "{here.name}". '
            "Analyze this model, or give the one that was analyzed."
        )
    if artifact.chat_template_hash != here.chat_template_hash:
        problems.append(
            f"{path}: was made with another chat template (hash {artifact.chat_template_hash[:12]}) than the one of "
            f'"{here.name}" (hash {here.chat_template_hash[:12]}). Prompts would be rendered differently.'
        )
    if problems:
        raise ArtifactError(problems)
