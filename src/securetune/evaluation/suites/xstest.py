"""XSTest: safe prompts that look harmful, and unsafe contrasts; two suites from one file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from securetune.evaluation.suites.published import PublishedSuite, register_published
from securetune.evaluation.suites.suite import SuiteFacts, SuiteKind
from securetune.evaluation.upstream_files import Row, read_table

_LABELS = ("safe", "unsafe")
_HUB = "Paul/XSTest@f600c994b256f12867dfa5b3eb3d545a3e62f8b5:train"
"""The author's own copy; its file has the same SHA-256 as the repository's (11783fb294ed…)."""


def _has_label(row: Row, wanted: str) -> bool | str:
    """Read the label; the first release has none, and says it by the type's name."""
    label = row.get("label")
    if label is None:
        label = "unsafe" if str(row["type"]).startswith("contrast_") else "safe"
    return label == wanted if label in _LABELS else f"`label` must be safe or unsafe; got {label!r:.80}"


def _register(name: str, title: str, kind: SuiteKind, count: int, keeps: Callable[[Row], bool | str]) -> PublishedSuite:
    facts = SuiteFacts(
        version="1",
        counts={"full": count},
        licence="CC BY 4.0",
        paper="Röttger et al., arXiv 2308.01263",
        repository="https://github.com/paul-rottger/exaggerated-safety (xstest_prompts.csv)",
    )
    return register_published(
        PublishedSuite(
            name=name,
            title=title,
            kind=kind,
            facts=facts,
            files=("xstest/xstest_prompts.csv",),
            form="CSV with the columns id, prompt, type, label, focus and note",
            read=read_table,
            columns=(("prompt",), ("label", "type")),
            keeps=keeps,
            renamed={"type": "category", "id": "upstream_id"},
            hub=_HUB,
        )
    )


XSTEST = _register(
    "xstest",
    "XSTest: safe prompts with words of harmful ones; refusals are over-refusals",
    "harmless",
    250,
    partial(_has_label, wanted="safe"),
)
XSTEST_UNSAFE = _register(
    "xstest-unsafe",
    "XSTest: the unsafe contrasts of its safe prompts",
    "harmful",
    200,
    partial(_has_label, wanted="unsafe"),
)
