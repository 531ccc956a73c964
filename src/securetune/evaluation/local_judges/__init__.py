"""Judges that are published classifiers; each announces itself when it is imported here."""

from securetune.evaluation.local_judges.classifier import Classifier, ClassifierJudging, register_classifier
from securetune.evaluation.local_judges.harmbench import HARMBENCH
from securetune.evaluation.local_judges.llama_guard import LLAMA_GUARD
from securetune.evaluation.local_judges.wildguard import WILDGUARD

CLASSIFIERS = (HARMBENCH, LLAMA_GUARD, WILDGUARD)

__all__ = ["CLASSIFIERS", "Classifier", "ClassifierJudging", "register_classifier"]
