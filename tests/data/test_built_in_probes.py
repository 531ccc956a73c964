"""The built-in probe prompts: how many, how they are divided, and that only the intention tells the classes apart."""

import re
import tomllib
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from securetune.data.built_in_probes import ProbePair, built_in_prompts, probe_pairs
from securetune.data.overlap import find_overlap

SPLITS = ("fitting", "searching", "testing")
CLASSES = ("harmful", "harmless")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def labelled(split: str) -> tuple[list[str], np.ndarray]:
    harmful, harmless = ([prompt.text for prompt in built_in_prompts(split, kind)] for kind in CLASSES)
    return harmful + harmless, np.repeat([1, 0], [len(harmful), len(harmless)])


def accuracy(model, fitted_on: str, scored_on: str) -> float:
    texts, labels = labelled(fitted_on)
    model.fit(texts, labels)
    texts, labels = labelled(scored_on)
    return float((model.predict(texts) == labels).mean())


def test_there_are_enough_prompts_in_enough_categories():
    """The counts that the documents name: 312 pairs in 13 categories of 24."""
    pairs = probe_pairs()
    assert len(pairs) == 312
    assert Counter(Counter(pair.category for pair in pairs).values()) == {24: 13}
    assert Counter(pair.split for pair in pairs) == {"fitting": 120, "searching": 96, "testing": 96}
    assert len({pair.id for pair in pairs}) == 312
    assert all(pair.id.startswith(f"{pair.category}-") for pair in pairs)


def test_a_category_belongs_to_one_split():
    """No category of the test is seen in fitting or searching, nor one of searching in fitting."""
    by_split = [{pair.category for pair in probe_pairs() if pair.split == split} for split in SPLITS]
    assert [len(categories) for categories in by_split] == [5, 4, 4]
    assert not any(first & second for first, second in combinations(by_split, 2))


def test_no_prompt_is_there_twice():
    """All 624 prompts differ, in any split and class, and none is nearly another of its class."""
    lists = [built_in_prompts(split, kind) for split in SPLITS for kind in CLASSES]
    assert not any(find_overlap(first, second) for first, second in combinations(lists, 2))
    assert len({prompt.words for prompts in lists for prompt in prompts}) == 624
    for kind in CLASSES:
        known = [frozenset(words(getattr(pair, kind))) for pair in probe_pairs()]
        assert max(len(first & second) / len(first | second) for first, second in combinations(known, 2)) < 0.65


def test_every_prompt_is_one_sentence():
    """A capital, no second sentence, and a full stop or a question mark."""
    texts = [getattr(pair, kind) for pair in probe_pairs() for kind in CLASSES]
    assert [text for text in texts if not re.fullmatch(r"[A-Z][^.?!\n]+[.?]", text)] == []


def test_twins_have_one_form():
    """Twins end alike, differ by two words in length at most, and share a third of their words at least."""

    def is_alike(pair: ProbePair) -> bool:
        counts = [len(text.split()) for text in (pair.harmful, pair.harmless)]
        known = [set(words(text)) for text in (pair.harmful, pair.harmless)]
        return (
            pair.harmful[-1] == pair.harmless[-1]
            and abs(counts[0] - counts[1]) <= 2
            and 3 / 4 < len(pair.harmful) / len(pair.harmless) < 4 / 3
            and len(known[0] & known[1]) >= min(len(known[0]), len(known[1])) / 3
        )

    assert [pair for pair in probe_pairs() if not is_alike(pair)] == []


def test_forms_vary():
    """Questions and orders, short and long; no opening is more than a fifth of them."""
    texts = [pair.harmful for pair in probe_pairs()]
    openings = Counter(text.split()[0] for text in texts)
    assert len(openings) >= 20
    assert max(openings.values()) <= 0.2 * len(texts)
    assert 0.25 < np.mean([text.endswith("?") for text in texts]) < 0.75
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 8
    assert max(lengths) >= 24


def form(text: str) -> list[float]:
    """Describe a sentence by everything but its vocabulary."""
    own, others = {"my", "our", "i", "me"}, {"somebody", "someone", "stranger", "people", "she", "he", "they", "them"}
    known = words(text)
    return [
        len(text),
        len(known),
        np.mean([len(word) for word in known]),
        *(text.count(sign) for sign in ",;?'-"),
        sum(word in own for word in known),
        sum(word in others for word in known),
        sum(word in {"a", "an", "the"} for word in known),
        sum(word in {"not", "no", "never", "without", "nobody"} for word in known),
    ]


@pytest.mark.parametrize("scored_on", SPLITS[1:])
def test_form_and_length_do_not_tell_the_classes_apart(scored_on: str):
    """Neither the length, the signs and the pronouns nor the opening words give harm away."""
    texts, labels = labelled("fitting")
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0).fit([form(text) for text in texts], labels)
    others, other_labels = labelled(scored_on)
    assert (forest.predict([form(text) for text in others]) == other_labels).mean() < 0.65

    def opening(text: str) -> list[str]:
        return [" ".join(words(text)[:count]) for count in (1, 2, 3)]

    by_opening = make_pipeline(CountVectorizer(analyzer=opening), LogisticRegression())
    assert accuracy(by_opening, "fitting", scored_on) < 0.65


@pytest.mark.parametrize("scored_on", SPLITS[1:])
def test_words_hardly_tell_the_classes_apart(scored_on: str):
    """A bag of words that is fitted to some categories is little better than a coin on others (0.56 and 0.58)."""
    by_words = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    assert accuracy(by_words, "fitting", "fitting") > 0.9
    assert accuracy(by_words, "fitting", scored_on) < 0.65


def test_the_first_prompts_are_twins_of_all_categories():
    """A short list is as mixed as a long one, and both classes are in the same order."""
    harmful, harmless = (built_in_prompts("searching", kind)[:8] for kind in CLASSES)
    assert Counter(prompt.metadata["category"] for prompt in harmful).most_common(4)[-1][1] == 2
    assert [prompt.id.removesuffix("-harmful") for prompt in harmful] == [
        prompt.id.removesuffix("-harmless") for prompt in harmless
    ]


def test_every_data_file_of_the_package_is_shipped():
    """Each file of the package that is no program matches a pattern of the package data."""
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    package = root / "src" / "securetune"
    patterns = settings["tool"]["setuptools"]["package-data"]["securetune"]
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert package / "data" / "probe_prompts.jsonl" in shipped
    assert files <= shipped
