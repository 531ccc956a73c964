"""SaLoRA: adapters that cannot reach the outputs by which harmful requests are known."""

from securetune.defenses.salora.safety_module import SafeAdapters, SaLoraOptions, output_directions, task_part

__all__ = ["SaLoraOptions", "SafeAdapters", "output_directions", "task_part"]
