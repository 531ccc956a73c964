"""The scores of each module in the report, out of what the sweep and the closed form found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from securetune.analysis.agreement import root_mean_square_over_last
from securetune.analysis.intervals import Interval, mean_interval, rate_interval
from securetune.analysis.sweep import LayerDrift, SweepLogits
from securetune.artifacts import ModuleRobustness
from securetune.models import ProjectionModule


class ScoreColumns(NamedTuple):
    """One readout's scores of all modules.

    Attributes:
        hits: 1 where the value is still positive, else 0.
        falls: How far the value fell.
        sampled: Root mean square of the shifts over prompts and seeds.
        closed_form: What the closed form expects it to be, or None if the perturbation has none.
    """

    hits: Float[Tensor, "module seed prompt"]
    falls: Float[Tensor, "module seed prompt"]
    sampled: Float[Tensor, " module"]
    closed_form: Float[Tensor, " module"] | None

    @classmethod
    def of(cls, logits: SweepLogits, closed_form: Float[Tensor, "module prompt"] | None) -> ScoreColumns:
        """Compute them; `closed_form` holds the expected shifts."""
        shifts = logits.shifts()[0]
        sampled = root_mean_square_over_last(shifts.flatten(1))
        return cls(
            logits.hits()[0],
            -shifts,
            sampled,
            None if closed_form is None else root_mean_square_over_last(closed_form),
        )

    def fall(self, module: int) -> Interval:
        """Return how far the value falls on average."""
        return mean_interval(self.falls[module])

    def share(self, module: int) -> Interval:
        """Return the share of the prompts whose value is still positive."""
        return rate_interval(self.hits[module])

    def closed_form_of(self, module: int) -> float | None:
        """Return the closed form's shift."""
        return None if self.closed_form is None else self.closed_form[module].item()


def module_entries(
    modules: Sequence[ProjectionModule],
    columns: Sequence[ScoreColumns],
    drift: LayerDrift | None,
    retrained: Float[Tensor, " module"] | None,
) -> Iterator[ModuleRobustness]:
    """Yield each module's entry.

    Args:
        modules: In the order of the columns.
        columns: Of the harmfulness classifier and, where it is measured, of the refusal margin.
        drift: Where it was followed.
        retrained: Accuracies of classifiers fitted anew, where controls were asked for.
    """
    features = columns[0]
    for index, module in enumerate(modules):
        accuracy, fall = features.share(index), features.fall(index)
        yield ModuleRobustness(
            name=module.name,
            type=module.type,
            layer=module.layer,
            parameter_count=module.parameter_count,
            accuracy=accuracy.mean,
            accuracy_low=accuracy.low,
            accuracy_high=accuracy.high,
            margin_fall=fall.mean,
            margin_fall_low=fall.low,
            margin_fall_high=fall.high,
            sampled_shift=features.sampled[index].item(),
            closed_form_shift=features.closed_form_of(index),
            **(_refusal_entries(columns[1], index) if len(columns) > 1 else {}),
            **(_drift_entries(drift, index) if drift else {}),
            retrained_accuracy=None if retrained is None else retrained[index].item(),
        )


def _refusal_entries(margin: ScoreColumns, index: int) -> dict[str, Any]:
    fall, share = margin.fall(index), margin.share(index)
    return {
        "refusal_margin_fall": fall.mean,
        "refusal_margin_fall_low": fall.low,
        "refusal_margin_fall_high": fall.high,
        "refusal_share": share.mean,
        "refusal_share_low": share.low,
        "refusal_share_high": share.high,
        "refusal_sampled_shift": margin.sampled[index].item(),
        "refusal_closed_form_shift": margin.closed_form_of(index),
    }


def _drift_entries(drift: LayerDrift, index: int) -> dict[str, Any]:
    cosine = [_unless_below(mean_interval, layer) for layer in drift.cosine[index]]
    accuracy = [_unless_below(rate_interval, layer) for layer in drift.hits[index]]
    return {
        "drift": tuple(interval and interval.mean for interval in cosine),
        "drift_low": tuple(interval and interval.low for interval in cosine),
        "drift_high": tuple(interval and interval.high for interval in cosine),
        "layer_accuracy": tuple(interval and interval.mean for interval in accuracy),
        "layer_accuracy_low": tuple(interval and interval.low for interval in accuracy),
        "layer_accuracy_high": tuple(interval and interval.high for interval in accuracy),
    }


def _unless_below(interval_of: Callable[[Tensor], Interval], values: Float[Tensor, "seed prompt"]) -> Interval | None:
    """Return the interval, or None for a layer below the perturbed one."""
    return None if values.isnan().all() else interval_of(values)
