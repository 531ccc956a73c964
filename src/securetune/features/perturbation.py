"""Gaussian perturbation of modules, in place, and its exact undoing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from securetune.models import ProjectionModule


def root_mean_square(weight: Float[Tensor, "out in"]) -> float:
    """Return rms(W), the size that noise is measured by, computed in float64."""
    return weight.detach().double().square().mean().sqrt().item()


def gaussian_noise(weight: Float[Tensor, "out in"], name: str, seed: int) -> Float[Tensor, "out in"]:
    """Draw N(0, 1) noise in float32 that depends on the module's name, the seed and the kind of device only.

    A module gets the same noise in whatever order or company modules are perturbed, so that results do not depend on
    how the work is divided.
    """
    digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    generator = torch.Generator(weight.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)


@contextmanager
def perturbed(model: nn.Module, modules: Sequence[ProjectionModule], epsilon: float, seed: int) -> Iterator[None]:
    """Add ε·rms(W)·N(0, 1) to the weights of some modules while the context is open.

    Afterwards the weights are bit-identical to what they were: they are copied back. Subtracting the noise would not
    round-trip in bfloat16.

    Args:
        model: The model; it is changed in place.
        modules: What to perturb, jointly.
        epsilon: Size of the noise relative to the root mean square of each weight matrix.
        seed: Which noise.
    """
    weights = {module.name: model.get_parameter(module.weight_name) for module in modules}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                noise = gaussian_noise(weight, name, seed)
                weight.copy_(weight.float() + (epsilon * root_mean_square(weight)) * noise)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(originals[name])
