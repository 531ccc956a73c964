"""The robustness heatmap: layers × module types, with the chosen modules marked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from securetune.artifacts import RobustnessReport
from securetune.reporting.figures import PAPER, new_figure, svg_text

_TYPES = ("Q", "K", "V", "O", "Gate", "Up", "Down")
_FRAME, _HALO = "#000000", "#ffffff"  # on the colours of the map, which are the same in light and dark mode
_LABELLED_LAYERS = 48
"""Up to here a cell has room for its value."""

Quantity = Literal["accuracy", "margin_fall", "refusal_margin_fall"]


def heatmap_svg(report: RobustnessReport, chosen: Collection[str], quantity: Quantity = "accuracy") -> str:
    """Draw the robustness of every module as an SVG document; a type that the model has nowhere keeps no column.

    Args:
        report: The analysis.
        chosen: Names of the modules in Mods_Rob, which get a frame and a dot.
        quantity: `accuracy` of the unchanged classifier (the paper's score), the fall of its logit, or the fall of the
            refusal margin, which every module of the report must then have.
    """
    types = _types(report)
    values = _grid(report, quantity)
    layers = values.shape[0]
    name = f"heatmap-{quantity}"
    with new_figure(name, 5.2, 1.1 + 0.34 * layers) as figure:
        axes = figure.add_subplot()
        norm = _norm(values, quantity)
        colours = colormaps["cividis" if quantity == "accuracy" else "cividis_r"]
        columns, rows = np.arange(len(types)), np.arange(layers)
        image = axes.pcolormesh(columns, rows, values, cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1.5)
        _mark_chosen(axes, report, chosen)
        if layers <= _LABELLED_LAYERS:
            _write_values(axes, values, image, quantity)
        axes.set_xticks(range(len(types)), types)
        axes.set_yticks(range(layers) if layers <= 16 else range(0, layers, 4))
        axes.set_ylabel("layer")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set(rasterized=False, edgecolor="face")  # a picture inside the SVG would blur when enlarged
        bar.set_label(_meaning(quantity))
        return svg_text(figure, name)


def _meaning(quantity: Quantity) -> str:
    return {
        "accuracy": "accuracy when perturbed",
        "margin_fall": "fall of the logit when perturbed",
        "refusal_margin_fall": "fall of the refusal margin when perturbed",
    }[quantity]


def _types(report: RobustnessReport) -> list[str]:
    return [kind for kind in _TYPES if any(module.type == kind for module in report.modules)]


def _grid(report: RobustnessReport, quantity: Quantity) -> Float[np.ndarray, "layer type"]:
    types = _types(report)
    grid = np.full((1 + max(module.layer for module in report.modules), len(types)), np.nan)
    for module in report.modules:
        grid[module.layer, types.index(module.type)] = getattr(module, quantity)
    return grid


def _norm(values: Float[np.ndarray, "layer type"], quantity: Quantity) -> Normalize:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    low = low if quantity == "accuracy" else min(low, 0.0)
    return Normalize(low, high if high > low else low + 1e-9)


def _mark_chosen(axes: Axes, report: RobustnessReport, chosen: Collection[str]) -> None:
    types = _types(report)
    for module in report.modules:
        if module.name in chosen:
            column = types.index(module.type)
            frame = (column - 0.45, module.layer - 0.44)
            axes.add_patch(Rectangle(frame, 0.9, 0.88, fill=False, edgecolor=_HALO, linewidth=3.6))
            axes.add_patch(Rectangle(frame, 0.9, 0.88, fill=False, edgecolor=_FRAME, linewidth=1.8))
            axes.plot(
                column + 0.36, module.layer + 0.3, marker="o", markersize=4.5, color=_FRAME, markeredgecolor=_HALO
            )


def _write_values(axes: Axes, values: Float[np.ndarray, "layer type"], image: QuadMesh, quantity: Quantity) -> None:
    for layer, row in enumerate(values):
        for column, value in enumerate(row):
            if np.isnan(value):
                continue
            red, green, blue, _ = image.cmap(image.norm(value))
            is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            text = f"{value:.2f}" if quantity == "accuracy" or abs(value) < 9.95 else f"{value:.1f}"
            axes.text(
                column, layer, text, ha="center", va="center", fontsize=8.5, color="black" if is_light else "white"
            )
