"""Disjoint prompt sets: which prompts align the model, which probe it, which choose settings, which test it.

Near-duplicates (AdvBench holds dozens of wordings of the same request) always fall into the same set, so that a test
prompt is new in content and not only in wording.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import corpora
import numpy as np
from corpora import Example
from rewording import reword_some
from scipy.optimize import linear_sum_assignment
from sklearn.feature_extraction.text import TfidfVectorizer

# Two prompts whose content words have at least this Jaccard index count as the same request. At 0.6 AdvBench's 520
# goals are 438 requests and CatQA's 550 questions 511; at 0.5 unrelated goals of one template start to chain.
SAME_REQUEST_JACCARD = 0.6
STOP_WORDS_TEXT = """
a an and are as at be by can do for from how i in into is it me my of on or some that the their them they this to use
using what which who with without you your
"""
STOP_WORDS = frozenset(STOP_WORDS_TEXT.split())
# The share of each source for each part. Test sizes follow the published protocol (110 prompts of each source).
PARTS = {"align": 0.33, "probe": 0.27, "validation": 0.19, "test": 0.21}


@dataclass(frozen=True)
class HarmfulPrompt:
    """A harmful request; `stratum` is the subcategory over which its source is spread."""

    prompt: str
    source: str
    stratum: str
    target: str = ""


@dataclass(frozen=True)
class PromptSets:
    """All sets, disjoint in the sense of `same_request`.

    Attributes:
        harmful: AdvBench and CatQA prompts by part ("align", "probe", "validation", "test").
        harmless: For each part but "align", as many harmless examples, matched in topic and length.
        other_harmful: Harmful questions of other sources, for alignment only.
        refusals: Published instruction and refusal pairs, for alignment only.
        xstest_safe: For testing only.
        xstest_unsafe: For testing only.
    """

    harmful: dict[str, list[HarmfulPrompt]]
    harmless: dict[str, list[Example]]
    other_harmful: list[HarmfulPrompt]
    refusals: list[Example]
    xstest_safe: list[str]
    xstest_unsafe: list[str]


def content_words(prompt: str) -> frozenset[str]:
    """Returns the words that say what a prompt is about."""
    return frozenset(word for word in re.findall(r"[a-z']+", prompt.lower()) if word not in STOP_WORDS)


class RequestIndex:
    """Finds the prompts of a collection that make the same request as a given one."""

    def __init__(self, prompts: Sequence[str]) -> None:
        """Indexes the prompts by their content words."""
        self.words = [content_words(prompt) for prompt in prompts]
        self._by_word: dict[str, list[int]] = defaultdict(list)
        for index, words in enumerate(self.words):
            for word in words:
                self._by_word[word].append(index)

    def same_request(self, prompt: str) -> list[int]:
        """Returns the indices of the prompts that make the same request."""
        words = content_words(prompt)
        candidates = {index for word in words for index in self._by_word.get(word, ())}
        return sorted(
            index
            for index in candidates
            if len(words & self.words[index]) >= SAME_REQUEST_JACCARD * len(words | self.words[index])
        )


def group_requests(prompts: Sequence[str]) -> list[int]:
    """Returns for each prompt the number of its group of near-duplicates."""
    parents = list(range(len(prompts)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    index_of = RequestIndex(prompts)
    for index, prompt in enumerate(prompts):
        for other in index_of.same_request(prompt):
            parents[root(other)] = root(index)
    return [root(index) for index in range(len(prompts))]


def split_harmful(prompts: Sequence[HarmfulPrompt], seed: int) -> dict[str, list[HarmfulPrompt]]:
    """Splits harmful prompts by `PARTS`, whole groups of near-duplicates at a time, evenly over the strata."""
    generator = random.Random(seed)
    groups: dict[int, list[HarmfulPrompt]] = defaultdict(list)
    for prompt, group in zip(prompts, group_requests([prompt.prompt for prompt in prompts]), strict=True):
        groups[group].append(prompt)
    order = list(groups.values())
    generator.shuffle(order)
    order.sort(key=len, reverse=True)  # large groups first: the small ones then even the parts out

    total: dict[str, int] = defaultdict(int)
    for prompt in prompts:
        total[prompt.stratum] += 1
    filled: dict[tuple[str, str], int] = defaultdict(int)
    parts: dict[str, list[HarmfulPrompt]] = {name: [] for name in PARTS}
    for group_prompts in order:
        stratum = group_prompts[0].stratum
        part = max(PARTS, key=lambda name: PARTS[name] * total[stratum] - filled[stratum, name])
        for prompt in group_prompts:
            filled[prompt.stratum, part] += 1
            parts[part].append(prompt)
    for rows in parts.values():
        generator.shuffle(rows)
    return parts


def _closest_examples(harmful: Sequence[str], pool: Sequence[Example]) -> list[Example]:
    """Picks for each harmful prompt a harmless example of its own, close in words, opening and length."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    pool_vectors = vectorizer.fit_transform([example.prompt for example in pool])
    similarity = (vectorizer.transform(harmful) @ pool_vectors.T).toarray()
    harmful_lengths = np.log2([len(prompt.split()) for prompt in harmful])
    pool_lengths = np.log2([len(example.prompt.split()) for example in pool])
    length_gap = np.abs(harmful_lengths[:, None] - pool_lengths[None, :])
    rows, columns = linear_sum_assignment(0.3 * length_gap - similarity)
    return [pool[column] for _, column in sorted(zip(rows, columns, strict=True))]


def match_harmless(harmful: Sequence[str], pool: Sequence[Example]) -> list[Example]:
    """Picks a harmless example for each harmful prompt, no two of which make the same request."""
    while True:
        matched = _closest_examples(harmful, pool)
        groups = group_requests([example.prompt for example in matched])
        repeated = {id(example) for index, example in enumerate(matched) if groups[index] in groups[:index]}
        if not repeated:
            return matched
        pool = [example for example in pool if id(example) not in repeated]


def make_prompt_sets(data_root: Path, seed: int) -> PromptSets:
    """Reads and splits all prompt sources; the same seed gives the same sets."""
    prompts = [HarmfulPrompt(goal, "advbench", "advbench", target) for goal, target in corpora.read_advbench(data_root)]
    for stratum, questions in corpora.read_catqa(data_root).items():
        prompts += [HarmfulPrompt(question, "catqa", stratum) for question in questions]
    prompts = list({prompt.prompt.lower(): prompt for prompt in prompts}.values())
    harmful = split_harmful(prompts, seed)

    xstest = [corpora.read_xstest(data_root, label) for label in ("safe", "unsafe")]
    held_out_rows = [row.prompt for part, rows in harmful.items() if part != "align" for row in rows]
    held_out = RequestIndex(held_out_rows + xstest[0] + xstest[1])
    others = [
        HarmfulPrompt(question, name, name)
        for name in ("harmfulqa", "dangerousqa")
        for question in corpora.read_harmful_questions(data_root, name)
        if not held_out.same_request(question)
    ]
    refusals = [pair for pair in corpora.read_refusals(data_root) if not held_out.same_request(pair.prompt)]

    pool = corpora.read_alpaca(data_root) + corpora.read_self_instruct(data_root) + corpora.read_dolly(data_root)
    pool = [example for example in pool if 4 <= len(example.prompt.split()) <= 40 and "\n" not in example.prompt]
    pool = reword_some(pool, 0.7, seed)  # one form of each, so that no request is in two parts
    parts = [part for part in PARTS if part != "align"]
    matched = iter(match_harmless([row.prompt for part in parts for row in harmful[part]], pool))
    harmless = {part: [next(matched) for _ in harmful[part]] for part in parts}
    return PromptSets(harmful, harmless, others, refusals, *xstest)


def without_held_out(examples: Sequence[Example], sets: PromptSets) -> list[Example]:
    """Leaves out the examples that make the same request as a harmless probe, validation or test prompt."""
    rows = [example for part in sets.harmless.values() for example in part]
    held_out = RequestIndex([example.prompt for example in rows] + [row.origin for row in rows if row.origin])
    return [
        example
        for example in examples
        if not held_out.same_request(example.prompt) and not (example.origin and held_out.same_request(example.origin))
    ]
