"""Models: loading, rendering of prompts, and where the projections of an architecture live."""

from securetune.models.architectures import MODULE_TYPES, Architecture, list_architectures, register_architecture
from securetune.models.checks import check_model, is_quantized
from securetune.models.identity import chat_template_hash, check_same_model, identify
from securetune.models.identity_in_files import check_same_model_in_files
from securetune.models.loading import ChatModel, load
from securetune.models.projections import ProjectionModule, architecture_of, map_modules
from securetune.models.registry import EmbeddedModel, list_models, register_embedded_model
from securetune.models.rendering import encode_prompts, render_conversation, render_prompt
from securetune.models.skeleton import load_skeleton
from securetune.models.weight_parts import WeightPart

__all__ = [
    "MODULE_TYPES",
    "Architecture",
    "ChatModel",
    "EmbeddedModel",
    "ProjectionModule",
    "WeightPart",
    "architecture_of",
    "chat_template_hash",
    "check_model",
    "check_same_model",
    "check_same_model_in_files",
    "encode_prompts",
    "identify",
    "is_quantized",
    "list_architectures",
    "list_models",
    "load",
    "load_skeleton",
    "map_modules",
    "register_architecture",
    "register_embedded_model",
    "render_conversation",
    "render_prompt",
]
