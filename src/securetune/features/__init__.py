"""Security features: the states by which a model tells harmful from harmless requests, and their perturbation."""

from securetune.features.classifier import SafetyClassifier, fit_classifier
from securetune.features.hidden_states import last_token_states, make_batches
from securetune.features.perturbation import perturbed
from securetune.features.probe import SecurityProbe, fit_probe
from securetune.features.replay import FullPass, LayerReplay, open_replay

__all__ = [
    "FullPass",
    "LayerReplay",
    "SafetyClassifier",
    "SecurityProbe",
    "fit_classifier",
    "fit_probe",
    "last_token_states",
    "make_batches",
    "open_replay",
    "perturbed",
]
