"""CatQA, HarmfulQA and DangerousQA, as the repository red-instruct has them."""

from __future__ import annotations

from functools import partial

from securetune.evaluation.suites.published import PublishedSuite, register_published
from securetune.evaluation.suites.selection import everything, first_of_each
from securetune.evaluation.suites.suite import SuiteFacts
from securetune.evaluation.upstream_files import read_list, read_nested_lists

_REPOSITORY = "https://github.com/declare-lab/red-instruct (harmful_questions/{})"

CATQA = register_published(
    PublishedSuite(
        name="catqa",
        title="CatQA: harmful questions of 11 categories with 5 subcategories each; by default the first 2 of the 10 "
        "in each subcategory",
        kind="harmful",
        facts=SuiteFacts(
            version="1",
            counts={"protocol": 110, "full": 550},
            licence="Apache-2.0",
            paper="Bhardwaj et al., arXiv 2402.11746",
            repository=_REPOSITORY.format("catqa_english.json"),
        ),
        files=("catqa/catqa_english.json", "harmful_questions/catqa_english.json"),
        form="JSON: category > subcategory > list of questions",
        read=partial(read_nested_lists, levels=("category", "subcategory")),
        columns=(("prompt", "Question"), ("category", "Category"), ("subcategory", "Subcategory")),
        selections={"protocol": first_of_each(("category", "subcategory"), 2), "full": everything},
        hub="declare-lab/CategoricalHarmfulQA@321e068b391b7d1aeeb882ac468356a9513c9167:en",
    )
)

HARMFULQA = register_published(
    PublishedSuite(
        name="harmfulqa",
        title="HarmfulQA: harmful questions by academic topic",
        kind="harmful",
        facts=SuiteFacts(
            version="1",
            counts={"full": 1960},
            licence="Apache-2.0",
            paper="Bhardwaj and Poria, arXiv 2308.09662",
            repository=_REPOSITORY.format("harmfulqa.json"),
        ),
        files=("harmfulqa/harmfulqa.json", "harmful_questions/harmfulqa.json"),
        form="JSON: topic > subtopic > list of questions",
        read=partial(read_nested_lists, levels=("topic", "subtopic")),
        columns=(("prompt", "question"),),
        left_out=("blue_conversations", "red_conversations"),  # the hub's copy has answers, which no judge may see
        hub="declare-lab/HarmfulQA@6f1a78aed47d16c0695e4595d0159abc38197bfd:train",
    )
)

DANGEROUSQA = register_published(
    PublishedSuite(
        name="dangerousqa",
        title="DangerousQA: short harmful questions",
        kind="harmful",
        facts=SuiteFacts(
            version="1",
            counts={"full": 200},
            licence="unclear (copy: Apache-2.0)",
            paper="Shaikh et al., arXiv 2212.08061",
            repository=_REPOSITORY.format("dangerousqa.json"),
        ),
        files=("dangerousqa/dangerousqa.json", "harmful_questions/dangerousqa.json"),
        form="JSON: list of questions",
        read=read_list,
        columns=(("prompt", "question"),),
    )
)
