"""A manifest in the words of other training tools: PEFT, axolotl, LLaMA-Factory."""

from securetune.pipeline.exporting.export import TOOLS, export
from securetune.pipeline.exporting.exported import Exported

__all__ = ["TOOLS", "Exported", "export"]
