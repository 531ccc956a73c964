"""MaliciousInstruct's questions."""

from __future__ import annotations

from securetune.evaluation.suites.published import PublishedSuite, register_published
from securetune.evaluation.suites.suite import SuiteFacts
from securetune.evaluation.upstream_files import read_lines

MALICIOUS_INSTRUCT = register_published(
    PublishedSuite(
        name="maliciousinstruct",
        title="MaliciousInstruct: questions with ten malicious intents",
        kind="harmful",
        facts=SuiteFacts(
            version="1",
            counts={"full": 100},
            licence="unclear (hub copy: CC BY-SA 4.0)",
            paper="Huang et al., arXiv 2310.06987",
            repository="https://github.com/Princeton-SysML/Jailbreak_LLM (data/MaliciousInstruct.txt)",
        ),
        files=("maliciousinstruct/MaliciousInstruct.txt", "data/MaliciousInstruct.txt"),
        form="a text of one question a line",
        read=read_lines,
        hub="walledai/MaliciousInstruct:train",  # the column prompt; 100 rows
    )
)
