"""What can be known to be wrong with a model before its weights are loaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.utils import get_session
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from securetune.config import ModelSettings
from securetune.errors import InputError, ModelError, ProblemList
from securetune.models.projections import map_modules
from securetune.models.registry import ModelSource, find_model

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_TIMEOUT_SECONDS = 5.0


def check_model(settings: ModelSettings, needs_chat_template: bool = True) -> list[str]:
    """Check everything about a model that does not need its weights: seconds, also for a large one.

    Checked: the folder and its files, that the weights are safetensors, the configuration, the tokenizer, the chat
    template, the projections in every layer (on a copy without memory), and the device.

    Args:
        settings: The model.
        needs_chat_template: Whether it must have one; classifiers need none, their prompts have a form of their own.

    Returns:
        One sentence a problem; empty if none was found.
    """
    problems = ProblemList()
    with problems.collect():
        check_device(settings)
    with problems.collect():
        source = find_model(settings.name)
        adapter = adapter_base(source)
        base = settings.model_copy(update={"name": adapter}) if adapter else settings
        base_source = find_model(base.name)
        problems.found += _check_files(base_source, base.name)
        if not problems.found:
            config = load_config(base, base_source)
            with problems.collect():
                _check_projections(config, settings)
            with problems.collect():
                tokenizer = load_tokenizer(settings, source)
                if needs_chat_template:
                    check_tokenizer(tokenizer, settings.name)
    return problems.found


def check_device(settings: ModelSettings) -> None:
    """Refuse a device that is not here.

    Raises:
        ModelError: If `device` is not a device name, or is a GPU and there is none.
    """
    if settings.device == "auto":
        return
    try:
        device = torch.device(settings.device)
    except RuntimeError:
        raise ModelError(f'device must be "auto", "cpu" or such as "cuda:0"; got "{settings.device}"') from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f'device "{settings.device}" is not here: torch sees {torch.cuda.device_count()} GPUs')


def adapter_base(source: ModelSource) -> str | None:
    """Return the start model's name if the folder holds a PEFT adapter instead of a whole model, else None.

    Raises:
        ModelError: If the adapter's configuration cannot be read or does not name its start model.
    """
    path = Path(source.location) / "adapter_config.json"
    if source.is_hub or not path.exists() or (Path(source.location) / "config.json").exists():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a readable adapter configuration ({error!r})") from None
    if not base:
        raise ModelError(f"{path}: must name the adapter's start model in `base_model_name_or_path`")
    return str(base)


def _check_files(source: ModelSource, name: str) -> list[str]:
    folder = Path(source.location)
    if source.is_hub:
        return []
    if not folder.is_dir():
        return [f"{name}: its folder {folder} is missing; is the package complete?"]
    problems = [] if (folder / "config.json").exists() else [f"{name}: config.json is missing; is this a model folder?"]
    problems += check_weight_files(folder, name)
    if not any((folder / file).exists() for file in _TOKENIZER_FILES):
        problems.append(
            f"{name}: no tokenizer (tokenizer.json or the like). Save the model's tokenizer beside its weights."
        )
    return problems


def check_weight_files(folder: Path, name: str) -> list[str]:
    """Say what is wrong with the weight files of a folder: missing, or pickles; empty if nothing is."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            return [f"{name}: {index.name} is not a readable index of weights ({error!r})"]
        missing = [shard for shard in shards if not (folder / shard).exists()]
        return [f"{name}: {len(missing)} of {len(shards)} weight files are missing: {', '.join(missing)}"] * bool(
            missing
        )
    if (folder / "model.safetensors").exists():
        return []
    pickles = sorted(path.name for pattern in _PICKLE_PATTERNS for path in folder.glob(pattern))
    if pickles:
        return [
            f"{name}: weights must be safetensors; got {pickles[0]}, a pickle, which can run any program when it is "
            "opened. Save the model again with save_pretrained()."
        ]
    return [f"{name}: no weights (model.safetensors)"]


@lru_cache(maxsize=8)
def hub_answers(name: str) -> bool:
    """Ask the hub once, briefly; its own client would retry for half a minute without a network."""
    try:
        get_session().head(f"{ENDPOINT}/{name}/resolve/main/config.json", timeout=_HUB_TIMEOUT_SECONDS)
    except Exception:  # every transport error of whichever HTTP library the hub client uses means "not reachable"
        return False
    return True


def is_out_of_reach(source: ModelSource) -> bool:
    """Tell whether only downloaded files of a hub model can be read."""
    return source.is_hub and not hub_answers(source.location)


def load_config(settings: ModelSettings, source: ModelSource) -> PreTrainedConfig:
    """Read a model's configuration.

    Raises:
        ModelError: If it cannot be read, or transformers does not know its architecture.
    """
    offline = is_out_of_reach(source)
    try:
        return AutoConfig.from_pretrained(
            source.location,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=offline,
        )
    except Exception as error:  # broken files surface as many different exceptions of transformers
        if offline:
            raise ModelError(
                f"{settings.name}: no such model folder, not among the downloaded models, and the hub cannot be reached"
            ) from None
        raise ModelError(f"{settings.name}: configuration cannot be read ({first_line(error)})") from None


def is_quantized(settings: ModelSettings) -> bool:
    """Tell whether a model's weights are stored rounded and packed, such as those of bitsandbytes, GPTQ or AWQ.

    Of an adapter, its start model is looked at.

    Raises:
        ModelError: If its configuration cannot be read.
    """
    source = find_model(settings.name)
    base = adapter_base(source)
    base_source = find_model(base) if base else source
    return getattr(load_config(settings, base_source), "quantization_config", None) is not None


def load_tokenizer(settings: ModelSettings, source: ModelSource) -> PreTrainedTokenizerBase:
    """Read a model's tokenizer.

    Raises:
        ModelError: If it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(
            source.location,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=is_out_of_reach(source),
        )
    except Exception as error:  # broken files surface as many different exceptions of transformers and tokenizers
        raise ModelError(f"{settings.name}: tokenizer cannot be read ({first_line(error)})") from None


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer without a chat template: prompts cannot be rendered as the model was aligned to see them.

    Raises:
        ModelError: If there is no chat template, or it cannot render one user message.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{name}: the tokenizer has no chat template. Use the chat version of the model, or add its template "
            "(chat_template.jinja)."
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program; it can fail in any way
        raise ModelError(f"{name}: the chat template cannot render a user message ({first_line(error)})") from None


def make_skeleton(config: PreTrainedConfig, settings: ModelSettings) -> PreTrainedModel:
    """Build the model without memory for its weights.

    Raises:
        ModelError: If the configuration is not one of a causal language model.
    """
    try:
        with torch.device("meta"):
            skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=settings.trust_remote_code
            )
    except InputError:
        raise
    except Exception as error:  # an unknown or inconsistent configuration fails in many ways
        raise ModelError(f"{settings.name}: not a causal language model ({first_line(error)})") from None
    return skeleton


def _check_projections(config: PreTrainedConfig, settings: ModelSettings) -> None:
    skeleton = make_skeleton(config, settings)
    try:
        map_modules(skeleton)
    except ModelError as error:
        raise ModelError([f"{settings.name}: {problem}" for problem in error.problems]) from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for a sentence of our own around it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
