"""Training: fine-tuning in phases, on TRL's `SFTTrainer`, with any registered defense."""

from securetune.training.checks import RESULT_FILE, CheckedTraining, check_training, setting_problems
from securetune.training.phase_trainer import PhaseTrainer
from securetune.training.train import train

__all__ = ["RESULT_FILE", "CheckedTraining", "PhaseTrainer", "check_training", "setting_problems", "train"]
