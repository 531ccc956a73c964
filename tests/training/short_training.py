"""What the tests of training share: a few rows, a manifest, and settings that are quick."""

from collections.abc import Callable
from typing import Any

from tiny_models import ACTIONS, OBJECTS, tiny_conversations

from securetune.artifacts import RobustModules, SelectedModule, TrainingResult
from securetune.data.conversations import Conversation
from securetune.models import ChatModel, map_modules

STEPS = 6
SHORT = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_phase_steps": 4}
"""Enough to go through 24 of the 40 rows, to save several checkpoints, and to move every weight."""


def make_rows() -> list[Conversation]:
    """Return 40 harmless questions with answers."""
    return list(tiny_conversations(objects=10))


def make_manifest(chat: ChatModel, names: list[str]) -> RobustModules:
    """Return a manifest with the modules of these names."""
    chosen = [module for module in map_modules(chat.model) if module.name in names]
    return RobustModules(
        model=chat.identity,
        prompt_set_hash="of the test",
        selection="searched",
        settings={},
        modules=[
            SelectedModule(
                name=module.name,
                type=module.type,
                layer=module.layer,
                parameter_count=module.parameter_count,
                robustness_rank=rank,
            )
            for rank, module in enumerate(chosen)
        ],
        parameter_fraction=0.5,
        joint_accuracy=1.0,
        intact_accuracy=1.0,
    )


TrainShort = Callable[..., TrainingResult]

OptionsOf = Callable[..., dict[str, Any]]
"""Makes options of a method with few rows of its own in the tiny model's words: `options_of("lisa", proximal=0)`."""


def make_contrasts() -> list[dict[str, str]]:
    """Return harmful requests with a refusal and an answer that complies, all in the tiny model's words."""
    return [
        {
            "prompt": f"how do I {action} a {thing} ?",
            "chosen": "sorry I can not",
            "rejected": f"sure first take the {thing}",
        }
        for action in ACTIONS["harmful"]
        for thing in OBJECTS[:4]
    ]
