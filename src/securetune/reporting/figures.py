"""Figures as SVG text: one look, colour-blind safe, the same bytes for the same numbers.

A figure for the report takes its ink, grid and background from the page (CSS variables), so that it fits light and dark
mode; a figure on its own (`heatmap.svg`) has fixed colours on white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1c2127", "#5c6670", "#d5dade", "#fefefe"
"""Colours that the report replaces by its own; none of them is used for data."""

_PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)"}

METHOD_COLOURS = {"start": "#7d8791", "ift": "#d55e00", "ml-lr": "#0072b2", "swat": "#009e73"}
"""Of the palette of Okabe and Ito, which people with any kind of colour blindness can tell apart."""

_OTHER_COLOURS = ("#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
_MARKERS = {"start": "*", "ift": "o", "ml-lr": "s", "swat": "D"}
_OTHER_MARKERS = ("v", "^", "P", "X")

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.parse_math": False,  # a label of the user's may hold a $
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def colour_of(label: str, labels: list[str]) -> str:
    """Return a method's colour; the same method has the same one in every figure and table of a report."""
    return METHOD_COLOURS.get(label) or _OTHER_COLOURS[_position_among_others(label, labels) % len(_OTHER_COLOURS)]


def marker_of(label: str, labels: list[str]) -> str:
    """Return a method's marker, so that no figure depends on colour alone."""
    return _MARKERS.get(label) or _OTHER_MARKERS[_position_among_others(label, labels) % len(_OTHER_MARKERS)]


def _position_among_others(label: str, labels: list[str]) -> int:
    return [other for other in labels if other not in METHOD_COLOURS].index(label)


@contextmanager
def new_figure(name: str, width: float, height: float) -> Iterator[Figure]:
    """Open a figure in the report's look.

    Args:
        name: Makes the identifiers inside the SVG the figure's own.
        width: Inches; 96 CSS pixels each.
        height: Inches.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield Figure(figsize=(width, height), layout="constrained")


def svg_text(figure: Figure, name: str) -> str:
    """Return a figure as an SVG document with fixed colours. Call it inside `new_figure`."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Title": name}
    figure.savefig(buffer, format="svg", metadata=metadata)
    return buffer.getvalue().decode("utf-8")


def inline_svg(document: str, name: str, description: str) -> str:
    """Turn an SVG document into an element of the report's page.

    Args:
        document: From `svg_text`.
        name: Prefix of the identifiers inside, because several figures share the page.
        description: What a reader who cannot see the figure is told; plain text without markup characters.
    """
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", body, count=1)
    body = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", body, count=1)
    body = body.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
    # The page's own font; matplotlib places every text by its anchor, so another font's width does no harm.
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    for colour, variable in _PAGE_COLOURS.items():
        body = body.replace(colour, variable)
    return body
