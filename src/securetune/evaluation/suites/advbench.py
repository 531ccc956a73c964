"""AdvBench's harmful behaviours."""

from __future__ import annotations

from securetune.evaluation.suites.published import PublishedSuite, register_published
from securetune.evaluation.suites.selection import by_digest, everything
from securetune.evaluation.suites.suite import SuiteFacts
from securetune.evaluation.upstream_files import read_table

ADVBENCH = register_published(
    PublishedSuite(
        name="advbench",
        title="AdvBench: harmful instructions with affirmative targets; by default 110 of the 520, chosen by the "
        "SHA-256 of their text",
        kind="harmful",
        facts=SuiteFacts(
            version="1",
            counts={"protocol": 110, "full": 520},
            licence="MIT",
            paper="Zou et al., arXiv 2307.15043",
            repository="https://github.com/llm-attacks/llm-attacks (data/advbench/harmful_behaviors.csv)",
        ),
        files=("advbench/harmful_behaviors.csv", "data/advbench/harmful_behaviors.csv"),
        form="CSV with the columns goal and target",
        read=read_table,
        columns=(("goal", "prompt"),),
        hub="walledai/AdvBench:train",  # the columns prompt and target; 520 rows
        selections={"protocol": by_digest(110), "full": everything},
    )
)
