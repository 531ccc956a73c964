"""How much of its inputs' energy is protected at each module: the same everywhere, or more where more depends on it.

Symbols: E is `energy`, s the sensitivity of a module (root-mean-square shift of the logit that tells harmful from
harmless requests when the module alone is perturbed; the closed form where the analysis has one), p the exponent.
The unprotected share of module m is

    u_m = min(1, c / s_m^p),  with c such that the mean of u over the protected modules is 1 − E;

its energy is e_m = 1 − u_m, in [0, 1). So the mean energy is E whatever the sensitivities are; a more sensitive module
never has less than another; p = 0 is the same energy everywhere. A disturbance that reaches the logit through the
unprotected inputs alone shifts it by about s_m·√u_m, so with p = 2 each module leaves the same shift. A sensitivity
below a thousandth of the highest counts as that thousandth, because 1 / s^p must be finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from securetune.errors import ArtifactError

_LOWEST_RELATIVE = 1e-3


def module_energies(
    names: Sequence[str], energy: float, sensitivities: Mapping[str, float] | None, exponent: float
) -> dict[str, float]:
    """Return the share of the energy to protect at each module.

    Args:
        names: The modules to protect.
        energy: Their mean, in [0, 1).
        sensitivities: Module → sensitivity (≥ 0); None: all modules have the same energy.
        exponent: p (≥ 0).

    Raises:
        ArtifactError: If there is no sensitivity for one of the modules.

    Example:
        >>> found = module_energies(["a", "b"], 0.9, {"a": 1.0, "b": 3.0}, 1.0)
        >>> {name: round(energy, 3) for name, energy in found.items()}
        {'a': 0.85, 'b': 0.95}
    """
    if sensitivities is None or not names:
        return dict.fromkeys(names, energy)
    if lacking := [name for name in names if name not in sensitivities]:
        raise ArtifactError(
            f"energy_by: sensitivity needs the sensitivity of each protected module, and the manifest has none for "
            f"{len(lacking)} of {len(names)}, such as {lacking[0]}. Search again with `securetune search`, or take "
            "energy_by: uniform."
        )
    if energy == 0 or exponent == 0:
        return dict.fromkeys(names, energy)
    return _divided({name: sensitivities[name] for name in names}, energy, exponent)


def _divided(sensitivities: Mapping[str, float], energy: float, exponent: float) -> dict[str, float]:
    """Give the least sensitive modules an unprotected share of 1 for as long as c / s^p is more than that."""
    ordered = sorted(sensitivities, key=lambda name: sensitivities[name])
    highest = sensitivities[ordered[-1]]
    if highest == 0:
        return dict.fromkeys(sensitivities, energy)
    relative = [max(sensitivities[name] / highest, _LOWEST_RELATIVE) for name in ordered]
    weights = [each**-exponent for each in relative]  # 1 / s^p, in descending order
    unprotected, free = (1 - energy) * len(ordered), 0
    while (unprotected - free) * weights[free] > sum(weights[free:]):
        free += 1
    constant = (unprotected - free) / sum(weights[free:])
    shares = [1.0] * free + [constant * weight for weight in weights[free:]]
    return {name: 1 - share for name, share in zip(ordered, shares, strict=True)}
