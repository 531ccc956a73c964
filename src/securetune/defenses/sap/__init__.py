"""SAP: a probe on hidden states that makes the harmful direction no help to the task."""

from securetune.defenses.sap.probing import ProbingOptions, SafetyAwareProbing

__all__ = ["ProbingOptions", "SafetyAwareProbing"]
