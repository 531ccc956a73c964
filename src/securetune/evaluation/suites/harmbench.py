"""HarmBench's standard text behaviours: those that need neither a context nor a copyright check."""

from __future__ import annotations

from securetune.evaluation.suites.published import PublishedSuite, register_published
from securetune.evaluation.suites.suite import SuiteFacts
from securetune.evaluation.upstream_files import Row, read_table


def _is_standard(row: Row) -> bool | str:
    """Read the kind; the hub's copy has a configuration for each, of which the standard one alone has no context."""
    kind = row.get("FunctionalCategory")
    if kind is not None:
        return str(kind).strip() == "standard"
    return "`FunctionalCategory` must say which behaviours are standard" if "Behavior" in row else "context" not in row


HARMBENCH = register_published(
    PublishedSuite(
        name="harmbench",
        title="HarmBench: the 200 standard behaviours; contextual and copyright ones are left out",
        kind="harmful",
        facts=SuiteFacts(
            version="1",
            counts={"full": 200},
            licence="MIT",
            paper="Mazeika et al., arXiv 2402.04249",
            repository="https://github.com/centerforaisafety/HarmBench "
            "(data/behavior_datasets/harmbench_behaviors_text_all.csv)",
        ),
        files=(
            "harmbench/harmbench_behaviors_text_all.csv",
            "data/behavior_datasets/harmbench_behaviors_text_all.csv",
        ),
        form="CSV with the columns Behavior, FunctionalCategory, SemanticCategory, Tags, ContextString and BehaviorID",
        read=read_table,
        columns=(("Behavior", "prompt"), ("FunctionalCategory", "category")),
        keeps=_is_standard,
        renamed={"SemanticCategory": "category", "BehaviorID": "behavior_id"},
        hub="walledai/HarmBench#standard:train",  # the columns prompt and category; 200 rows
    )
)
