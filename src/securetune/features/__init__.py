"""Security features: the states by which a model tells harmful from harmless requests, and their perturbation."""

from securetune.features.classifier import SafetyClassifier, fit_classifier
from securetune.features.hidden_states import last_token_states, make_batches
from securetune.features.perturbation import (
    GaussianPerturbation,
    MeanAblation,
    Perturbation,
    UpdatePerturbation,
    mean_outputs,
    perturbed,
)
from securetune.features.probe import SecurityProbe, fit_probe
from securetune.features.readout import (
    Openings,
    Readout,
    RefusalMargin,
    find_openings,
    openings_from_phrases,
    refusal_margin,
)
from securetune.features.replay import FullPass, LayerReplay, open_replay

__all__ = [
    "FullPass",
    "GaussianPerturbation",
    "LayerReplay",
    "MeanAblation",
    "Openings",
    "Perturbation",
    "Readout",
    "RefusalMargin",
    "SafetyClassifier",
    "SecurityProbe",
    "UpdatePerturbation",
    "find_openings",
    "fit_classifier",
    "fit_probe",
    "last_token_states",
    "make_batches",
    "mean_outputs",
    "open_replay",
    "openings_from_phrases",
    "perturbed",
    "refusal_margin",
]
