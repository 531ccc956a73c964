"""How a plan looks: its tables, and the training example with the loss mask visible."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from securetune.untrusted_text import without_control_characters

if TYPE_CHECKING:
    from rich.table import Table

    from securetune.pipeline.planning import Plan

_GIGA = 1e9
_MEGA = 1e6


def modules_table(planned: Plan) -> Table:
    """Return the module map: a row a type."""
    table = _table(f"Module map, by {planned.mapped_by}", "type", "layers", "stored as", "parameters", "share")
    for kind in planned.modules:
        count = f"{kind.parameter_count:,}"
        table.add_row(kind.type, shown_layers(kind.layers), kind.stored, count, f"{kind.share:.1%}")
    return table


def phases_table(planned: Plan) -> Table:
    """Return what trains when, and how fast: a row a group."""
    seeds = f", each with {planned.seeds} seeds" if planned.seeds > 1 else ""
    table = _table(
        f"Trainings{seeds}", "method", "phase", "steps", "group", "learning rate", "parameters", "share", "robust"
    )
    for training in planned.trainings:
        known = training.robust_modules
        robust = (
            f"target {training.target_fraction:.0%}" if known is None else f"{len(known)} modules" if known else "-"
        )
        for phase in training.phases:
            for group in phase.groups:
                about = "about " if known is None else ""
                table.add_row(
                    f"{training.label} ({training.tune})",
                    phase.name,
                    f"{phase.steps:,}" + (f" + {phase.alignment_steps:,}" if phase.alignment_steps else ""),
                    group.name,
                    f"{group.learning_rate:g}",
                    f"{about}{group.parameter_count:,}",
                    f"{group.share:.1%}",
                    robust,
                )
    return table


def chains_table(planned: Plan) -> Table | None:
    """Return what is chained around the trainings: a row a method; None if nothing is."""
    chained = [each for each in planned.trainings if each.before or each.after or each.generation]
    if not chained:
        return None
    table = _table("Chains", "method", "on the data", "rows", "on the weights", "at generation")
    for training in chained:
        steps = [f"{step.defense}{' (attack)' * (step.purpose == 'attack')}" for step in training.before]
        counts = [f"{step.rows_after:,}" for step in training.before]
        rows = " -> ".join([f"{training.before[0].rows_before:,}", *counts]) if training.before else ""
        table.add_row(training.label, ", ".join(steps), rows, ", ".join(training.after), ", ".join(training.generation))
    return table


def memory_table(planned: Plan) -> Table:
    """Return the memory estimates: a row a phase."""
    columns = ("weights", "gradients", "optimizer", "activations", "total")
    table = _table("Peak memory, estimated", "method", "phase", *columns)
    for training in planned.trainings:
        for phase in training.phases:
            sizes = (shown_bytes(getattr(phase.memory, column)) for column in columns)
            table.add_row(training.label, phase.name, *sizes)
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def shown_bytes(count: int) -> str:
    """Return a size in GB, or in MB below one.

    Example:
        >>> shown_bytes(16_100_000_000), shown_bytes(3_400_000)
        ('16.1 GB', '3.4 MB')
    """
    return f"{count / _GIGA:.1f} GB" if count >= _GIGA else f"{count / _MEGA:.1f} MB"


def shown_layers(layers: Sequence[int]) -> str:
    """Return layers as ranges.

    Example:
        >>> shown_layers([0, 1, 2, 5])
        '0-2, 5'
    """
    ranges = []
    for _, run in groupby(enumerate(sorted(layers)), key=lambda place: place[1] - place[0]):
        found = [layer for _, layer in run]
        ranges.append(str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}")
    return ", ".join(ranges)


def data_sentence(planned: Plan) -> str:
    """Say what becomes of the conversations."""
    data = planned.data
    counted = [f"{count:,} {shape}" for shape, count in data.shapes.items()]
    recognised = " and ".join(counted) if len(counted) > 1 else "".join(data.shapes)
    return (
        f"Data: {data.conversations:,} conversations, recognised as {recognised}, give {data.rows:,} rows; "
        f"{data.cut_rows:,} are cut at {data.max_length_tokens:,} tokens and {data.dropped_rows:,} dropped. "
        f"{data.tokens:,} tokens, of which {data.answer_tokens:,} carry loss."
    )


def example_text(planned: Plan) -> None:
    """Print the example: on a terminal, what carries loss is bold and the rest dim; elsewhere it stands in brackets."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout)
    text = Text()
    for segment in planned.example:
        shown = without_control_characters(segment.text)
        if console.is_terminal:
            text.append(shown, style="bold" if segment.trained else "dim")
        else:
            text.append(f"[[{shown}]]" if segment.trained else shown)
    how = "bold" if console.is_terminal else "in [[double brackets]]"
    print(f"First row of the training data; what carries loss is {how}:")
    console.print(text, soft_wrap=True)
