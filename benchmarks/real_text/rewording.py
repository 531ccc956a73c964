"""Harmless requests in the forms that harmful ones have.

AdvBench and CatQA ask in a few forms ("How can I ...?", "Write a tutorial on how to ..."), in which Alpaca seldom asks
anything. Left so, form alone would tell harmful from harmless prompts, for the model and for the probe of the analysis.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from corpora import Example

HOW_TO = re.compile(
    r"\b(?:how|ways?|steps?|strateg(?:y|ies)|methods?|tips|techniques?) to ([^.?!:;\"]{8,})[.?!]?$", re.I
)
IMPERATIVE = re.compile(
    r"^(?:(?:write|create|design|develop|build|make|construct|find|compose|produce|plan|organize|calculate|convert"
    r"|improve|choose) [^.?!:;\"]{8,})[.?!]?$",
    re.I,
)
# Forms with their weights: about those of the two harmful sources together.
HOW_TO_FORMS = {
    "How can I {}?": 8,
    "How do I {}?": 2,
    "What are some ways to {}?": 3,
    "What are the best methods to {}?": 1,
    "What are some techniques to {}?": 1,
    "Write a tutorial on how to {}": 2,
    "Write a guide on how to {}": 2,
    "Provide step-by-step instructions for how to {}": 2,
    "Teach me how to {}": 1,
    "Develop a plan to {}": 2,
}
IMPERATIVE_FORMS = {"How can I {}?": 5, "What are some ways to {}?": 1, "What is the best way to {}?": 1}


def reworded(example: Example, generator: random.Random) -> Example | None:
    """Returns the example asked in another form, or None if its prompt is not a plain request to do something."""
    prompt = example.prompt
    if "\n" in prompt or len(prompt.split()) > 25:
        return None
    if how_to := HOW_TO.search(prompt):
        action, forms = how_to.group(1), HOW_TO_FORMS
    elif IMPERATIVE.match(prompt):
        action, forms = prompt[0].lower() + prompt[1:].rstrip(".?!"), IMPERATIVE_FORMS
    else:
        return None
    form = generator.choices(list(forms), weights=list(forms.values()))[0]
    return replace(example, prompt=form.format(action.strip()), origin=prompt)


def reword_some(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Returns the examples in their order, a share of those that can be reworded replaced by the rewording."""
    generator = random.Random(seed)
    result = []
    for example in examples:
        other = reworded(example, generator)
        result.append(other if other and generator.random() < share else example)
    return result


def rewordings(examples: Sequence[Example], seed: int) -> list[Example]:
    """Returns the rewording of each example that has one."""
    generator = random.Random(seed)
    return [other for example in examples if (other := reworded(example, generator))]
