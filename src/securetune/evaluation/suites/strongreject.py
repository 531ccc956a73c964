"""StrongREJECT's forbidden prompts."""

from __future__ import annotations

from securetune.evaluation.suites.published import PublishedSuite, register_published
from securetune.evaluation.suites.suite import SuiteFacts
from securetune.evaluation.upstream_files import read_table

STRONGREJECT = register_published(
    PublishedSuite(
        name="strongreject",
        title="StrongREJECT: specific, answerable forbidden requests in 6 categories",
        kind="harmful",
        facts=SuiteFacts(
            version="1",
            counts={"full": 313},
            licence="MIT (parts: their own)",
            paper="Souly et al., arXiv 2402.10260",
            repository="https://github.com/alexandrasouly/strongreject (strongreject_dataset/strongreject_dataset.csv)",
        ),
        files=("strongreject/strongreject_dataset.csv", "strongreject_dataset/strongreject_dataset.csv"),
        form="CSV with the columns category, source and forbidden_prompt",
        read=read_table,
        columns=(("forbidden_prompt", "prompt"),),
        hub="walledai/StrongREJECT:train",  # the columns prompt, category and source; 313 rows
    )
)
