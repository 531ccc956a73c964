"""SPPFT (arXiv 2408.17003): everything trains but the safety layers.

How they are found, and where that differs from the paper, is in `locating`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from securetune.artifacts import ModelIdentity
from securetune.config import ModelSettings, PositiveInt, ProbeSettings, Settings
from securetune.data.prompts import ProbeSet, Prompt, load_probes
from securetune.defenses.base import MAIN_PHASE, Defense, DefenseContext, ParameterGroup, Phase, plain_phase
from securetune.defenses.registry import register_defense
from securetune.defenses.sppft.locating import LayerRange, locate_safety_layers
from securetune.errors import ConfigError
from securetune.models import ChatModel, is_quantized
from securetune.models.layer_weights import layer_of


class SafetyLayerOptions(Settings):
    """Options of `sppft`.

    Attributes:
        layers: The first and the last safety layer, counted from 0, such as `[6, 12]`; None: found before training.
        harmful: File or data set of harmful requests to find them with; None: the prompts that analysis and search use
            for this model, which no suite holds.
        harmless: The same for harmless ones, best with words that sound dangerous; both or neither.
        max_prompts: Most of each kind and part. 128, as in analysis.
        batch_size: Prompts a pass.
        seed: Of the pairs of prompts whose states are compared.
    """

    layers: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    harmful: str | None = None
    harmless: str | None = None
    max_prompts: PositiveInt = 128
    batch_size: PositiveInt = 64
    seed: int = 0


@register_defense("sppft")
class FrozenSafetyLayers(Defense):
    """SPPFT: the safety layers, which tell harmful from harmless requests, do not train.

    Under LoRA their adapters do not. Embeddings, norms and head train as usual. What was found, with the curve and the
    counts that led to it, is in `training.json`.
    """

    source = "arXiv 2408.17003"
    options_type: ClassVar[type[Settings]] = SafetyLayerOptions

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        given = self.own.layers
        if given is not None and given[0] > given[1]:
            raise ConfigError(f"method_options.layers must be the first and the last layer; got {list(given)}")
        self._layers = LayerRange(*given) if given is not None else None
        self._evidence: dict[str, Any] = {}
        self._layer_count: int | None = None

    @property
    def own(self) -> SafetyLayerOptions:
        """The options, with their type."""
        assert isinstance(self.options, SafetyLayerOptions)
        return self.options

    @property
    def layers(self) -> LayerRange | None:
        """The safety layers, once they are known."""
        return self._layers

    def _probes(self, model_name: str) -> ProbeSet:
        own = self.own
        settings = ProbeSettings(harmful=own.harmful, harmless=own.harmless, max_prompts=own.max_prompts)
        return load_probes(settings, model_name)

    def prompts_used(self, model_name: str) -> list[Prompt]:
        """Return the prompts by which the layers are found; none if they are given."""
        if self.own.layers is not None:
            return []
        probes = self._probes(model_name)
        return [prompt for part in probes[:4] for prompt in part]

    def check(self, model: ModelSettings) -> None:
        """Refuse to look for the layers of a quantized model.

        Raises:
            ConfigError: If that is asked for.
        """
        if self.own.layers is None and is_quantized(model):
            raise ConfigError(_QUANTIZED)

    def before_training(self, model: nn.Module, context: DefenseContext) -> None:
        """Find the layers, unless they are given.

        Raises:
            ConfigError: If the weights cannot be scaled, or there is no tokenizer.
            RunError: If the model shows no safety layers.
        """
        if self.own.layers is not None:
            return
        plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        tokenizer = _require_scalable(plain, context)
        was_training = model.training
        model.eval()
        try:
            chat = ChatModel(plain, tokenizer, ModelSettings(name=context.model_name), _unnamed(plain))
            found = locate_safety_layers(chat, self._probes(context.model_name), self.own.batch_size, self.own.seed)
        finally:
            model.train(was_training)
        self._layers, self._evidence = found

    def phases(self, context: DefenseContext) -> list[Phase]:
        """Return the one phase: everything but the safety layers; as long as they are not known, everything.

        Raises:
            ConfigError: If the model has no such layers, or nothing else would train.
        """
        layers, count = self._layers, max((module.layer for module in context.modules), default=-1) + 1
        if layers is None:
            return [plain_phase(context)]
        if count and layers.last >= count:
            raise ConfigError(
                f"method_options.layers must be in [0, {count - 1}], as the model has {count} layers; "
                f"got {list(layers)}"
            )
        self._layer_count = count
        names = [name for name in context.parameters.all if not _is_within(layers, layer_of(name))]
        if not names:
            raise ConfigError(
                f"sppft: the safety layers {layers.first} to {layers.last} hold everything that may train. Name fewer "
                "(method_options.layers)."
            )
        return [Phase(MAIN_PHASE, context.main_steps, (ParameterGroup("all", tuple(names), context.learning_rate),))]

    def notes(self) -> list[str]:
        """Say which layers are frozen."""
        if self._layers is None:
            return ["sppft finds its safety layers before training; until then all parameters count as trained."]
        how = "as they were given" if self.own.layers is not None else "as they were found"
        return [f"sppft freezes layers {self._layers.first} to {self._layers.last} of {self._layer_count}, {how}."]

    def evidence(self) -> dict[str, Any]:
        """Return the curve, the ranges that were tried, and the layers that are frozen."""
        return self._evidence or ({"layers": list(self._layers)} if self._layers else {})


_QUANTIZED = (
    "sppft finds the safety layers by scaling weights, and those of a quantized model are packed. Name the layers: "
    "method_options.layers."
)


def _is_within(layers: LayerRange, layer: int | None) -> bool:
    return layer is not None and layers.first <= layer <= layers.last


def _require_scalable(model: nn.Module, context: DefenseContext) -> PreTrainedTokenizerBase:
    problems = []
    if getattr(model, "is_quantized", False):
        problems.append(_QUANTIZED)
    if any(type(weight.data).__name__ == "DTensor" or weight.numel() == 0 for weight in model.parameters()):
        problems.append(
            "sppft finds the safety layers in whole weights; they are sharded (FSDP2, ZeRO-3). Name the layers: "
            "method_options.layers."
        )
    if context.tokenizer is None:
        problems.append("sppft needs the model's tokenizer (processing_class) to render its prompts")
    if problems or context.tokenizer is None:
        raise ConfigError(problems)
    return context.tokenizer


def _unnamed(model: Any) -> ModelIdentity:
    """Return an identity without a fingerprint, which nothing here reads."""
    return ModelIdentity(
        name="",
        revision=None,
        architecture=type(model).__name__,
        parameter_count=0,
        weights_fingerprint="",
        chat_template_hash="",
    )
