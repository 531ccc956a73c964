"""ML-LR: robust modules learn at the base rate, the rest more slowly."""

from securetune.defenses.ml_lr.modular_rates import ModularLearningRate

__all__ = ["ModularLearningRate"]
