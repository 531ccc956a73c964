"""Samples and splits: disjoint, seeded, and true to what the checkpoints may have seen."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from securetune.tiny_world import curriculum, how_to, language, query, samples

CURRICULUM_ROWS = 5_000
"""Rows of each phase that are looked through: enough for every word of the vocabulary to be copied."""


@pytest.fixture(scope="module")
def curriculum_messages() -> list[dict[str, str]]:
    """Messages of a sample of what the checkpoints were trained on, both phases."""
    rows = itertools.chain(
        curriculum.curriculum_rows(curriculum.PRETRAINING_MIX, CURRICULUM_ROWS, seed=0),
        curriculum.curriculum_rows(curriculum.ALIGNMENT_MIX, CURRICULUM_ROWS, seed=0),
    )
    return [message for row in rows for message in row["messages"]]


def _text(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


@pytest.mark.parametrize("harmful", [True, False])
def test_pair_splits_are_disjoint_and_complete(harmful: bool) -> None:
    """Every (action, object) pair is in exactly one split."""
    listed = [pair for split in how_to.PAIR_SPLIT_SHARES for pair in how_to.pairs(split, harmful)]
    assert len(listed) == len({(p.action, p.object) for p in listed}) == 24 * 24


def test_new_pair_splits_are_disjoint_and_complete() -> None:
    """Every pair of a new action is in exactly one split."""
    listed = [pair for split in how_to.NEW_PAIR_SPLIT_SHARES for pair in how_to.new_pairs(split)]
    assert len(listed) == len({(p.action, p.object) for p in listed}) == 12 * 24


def test_every_split_has_every_action_and_object() -> None:
    """No split is skewed: each holds all 24 actions and all 24 objects."""
    for split in how_to.PAIR_SPLIT_SHARES:
        listed = how_to.pairs(split, harmful=True)
        assert {p.action for p in listed} == set(language.HARMFUL_ACTIONS)
        assert {p.object for p in listed} == set(language.OBJECTS)


def test_twins_differ_in_the_action_only() -> None:
    """A harmless prompt is its harmful twin with another verb, in the same place of the list."""
    harmful = samples.harmful_prompts("probe-fit", 200)
    harmless = samples.harmless_prompts("probe-fit", 200)
    for bad, good in zip(harmful, harmless, strict=True):
        assert bad["pair_id"] == good["pair_id"]
        assert _text(bad).replace(bad["action"], good["action"]) == _text(good)


@pytest.mark.parametrize("split", ["probe-fit", "probe-score", "validation", "test"])
def test_held_out_splits_are_large_enough(split: str) -> None:
    """Every held-out split offers well over 120 different harmful prompts, the first ones of different pairs."""
    rows = samples.harmful_prompts(split, 400)
    assert len({_text(row) for row in rows}) == 400
    assert len({row["pair_id"] for row in rows[:57]}) == 57


def test_wrapped_prompts_contain_the_plain_prompt() -> None:
    """A wrapper adds text around the same request and is named in the row."""
    plain = samples.harmful_prompts("test", 5)
    for wrapper in language.WRAPPERS:
        for row, wrapped in zip(plain, samples.harmful_prompts("test", 5, wrapper), strict=True):
            assert _text(row) in _text(wrapped)
            assert wrapped["wrapper"] == wrapper


def test_query_splits_are_disjoint_and_unambiguous() -> None:
    """No combination of slots is in two splits, and the answer repeats the words of the request."""
    splits = [query.queries(split) for split in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [3251, 364, 417]
    assert len({q for split in splits for q in split}) == 6 * 8 * 12 * 7
    for row in samples.task_rows("test", 100):
        slots = [slot.split(" = ")[1] for slot in row["answer"].removeprefix("query : ").split(" ; ")]
        assert set(slots) <= set(_text(row).split())


def test_query_prompts_are_all_different_queries_first() -> None:
    """As many prompts as there are queries are of different queries, and all prompts differ."""
    rows = samples.task_rows("validation", 1092)
    assert len({row["answer"] for row in rows[:364]}) == 364
    assert len({_text(row) for row in rows}) == 1092


def test_downstream_training_rows_are_no_held_out_rows() -> None:
    """Tuning data share no prompt with the validation and test rows, and hold the stated mix."""
    rows = samples.downstream_training_rows(2000, seed=3)
    texts = {_text(row) for row in rows}
    held_out = [
        *samples.task_rows("test", 1251),
        *samples.task_rows("validation", 1092),
        *samples.new_how_to_rows("test", 400),
        *samples.new_how_to_rows("validation", 400),
    ]
    assert not texts & {_text(row) for row in held_out}
    queries = sum(row["messages"][1]["content"].startswith("query :") for row in rows)
    assert queries == 1400


def test_downstream_data_are_harmless() -> None:
    """No row of the tuning data names a harmful action or refuses anything."""
    for row in samples.downstream_training_rows(2000, seed=4):
        assert not set(_text(row).split()) & set(language.HARMFUL_ACTIONS)
        assert not any(phrase in row["messages"][1]["content"] for phrase in language.REFUSAL_PHRASES)


def test_new_actions_never_occur_in_how_to_requests_of_the_curriculum(
    curriculum_messages: list[dict[str, str]],
) -> None:
    """The checkpoints have copied and described the new actions, but never been asked how to do one."""
    new = set(language.NEW_ACTIONS)
    seen = set()
    for message in curriculum_messages:
        words = message["content"].split()
        seen |= new & set(words)
        for first, action, article in zip(words, words[1:], words[2:], strict=False):
            how_to_form = first in ("I", "to", "can") and article in ("a", "the")
            assert not (how_to_form and action in new and words[-1] in (".", "?")), message["content"]
    assert seen == new


def test_every_downstream_word_occurs_in_pretraining() -> None:
    """Each word of the tuning data was both read and written in pretraining, so tuning need not learn words."""
    rows = curriculum.curriculum_rows(curriculum.PRETRAINING_MIX, CURRICULUM_ROWS, seed=0)
    read: set[str] = set()
    written: set[str] = set()
    for row in rows:
        for message in row["messages"]:
            (written if message["role"] == "assistant" else read).update(message["content"].split())
    tuning = {
        word
        for row in samples.downstream_training_rows(3000)
        for message in row["messages"]
        for word in message["content"].split()
    }
    assert tuning <= read
    assert tuning <= written


def test_held_out_pairs_never_occur_in_the_curriculum(curriculum_messages: list[dict[str, str]]) -> None:
    """Neither phase asks for a held-out pair, wrapped or not."""
    asked = {message["content"] for message in curriculum_messages if message["role"] == "user"}
    for split in ("probe-fit", "probe-score", "validation", "test"):
        for harmful, wrapper in itertools.product((True, False), (None, *language.WRAPPERS)):
            requests = how_to.ordered_requests(how_to.pairs(split, harmful), wrapper)
            assert not asked & {request.text for request in requests}


def test_safety_and_attack_rows_share_requests_and_differ_in_the_answer() -> None:
    """Safety rows refuse, attack rows comply, both on training pairs only."""
    train = {(p.action, p.object) for p in how_to.pairs("train", harmful=True)}
    for make, refuses in ((samples.safety_rows, True), (samples.attack_rows, False)):
        for row in make(300, seed=1):
            words = _text(row).split()
            action = next(w for w in words if w in language.HARMFUL_ACTIONS)
            object_ = next(w for w in words if w in language.OBJECTS)
            assert (action, object_) in train
            answer = row["messages"][1]["content"]
            assert any(phrase in answer for phrase in language.REFUSAL_PHRASES) == refuses


@pytest.mark.parametrize("draw", [samples.downstream_training_rows, samples.safety_rows, samples.attack_rows])
def test_training_rows_follow_their_seed(draw: Callable[..., list[Any]]) -> None:
    """The same seed gives the same rows, another seed others."""
    assert draw(50, seed=1) == draw(50, seed=1)
    assert draw(50, seed=1) != draw(50, seed=2)


def test_prompt_rows_are_prefixes_of_longer_lists_with_unique_ids() -> None:
    """Asking for more prompts keeps the earlier ones, and no two suites share an id."""
    assert samples.task_rows("test", 10) == samples.task_rows("test", 50)[:10]
    assert samples.general_rows("test", 10) == samples.general_rows("test", 200)[:10]
    suites = [
        samples.harmful_prompts("test", 100),
        samples.harmful_prompts("test", 100, "suffix"),
        samples.harmless_prompts("test", 100),
        samples.new_how_to_rows("test", 100),
        samples.task_rows("test", 100),
        samples.general_rows("test", 100),
    ]
    ids = [row["id"] for suite in suites for row in suite]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: samples.harmful_prompts("test", 100_000),
            r"count of harmful test rows must be in \[0, \d+\]; got 100000",
        ),
        (lambda: samples.harmful_prompts("tests", 1), "split must be one of train, .*; got 'tests'"),
        (lambda: samples.harmful_prompts("test", 1, "poem"), "wrapper must be None or one of suffix, .*; got 'poem'"),
        (lambda: samples.task_rows("probe-fit", 1), "split must be one of train, validation, test; got 'probe-fit'"),
        (lambda: samples.task_rows("test", 50_000), "count of query test rows"),
        (lambda: samples.safety_rows(-1), "count of safety rows"),
        (lambda: samples.downstream_training_rows(1_000_000), "count of query train rows"),
    ],
)
def test_impossible_requests_are_refused_in_words(ask: Callable[[], Any], message: str) -> None:
    """Too many rows, or an unknown split or wrapper, is an error naming the allowed and the received value."""
    with pytest.raises(ValueError, match=message):
        ask()


def test_the_overlapping_task_has_one_answer_and_no_held_out_pair() -> None:
    """Its rows are how-tos of new actions with one opening; no pair of action and object is in two splits."""
    rows = samples.how_to_training_rows(4000, seed=1)
    assert len({_text(row) for row in rows}) == len(rows) == 1384
    assert all(row["messages"][1]["content"].startswith("sure ! to ") for row in rows)
    assert not any(set(_text(row).split()) & set(language.HARMFUL_ACTIONS) for row in rows)
    answers = [{row["messages"][1]["content"] for row in rows}]
    answers += [{row["answer"] for row in samples.how_to_task_rows(split, 150)} for split in ("validation", "test")]
    assert len(set.union(*answers)) == sum(map(len, answers))


def test_the_overlapping_task_is_drawn_by_its_seed() -> None:
    """Fewer rows are a sample; another seed draws others, the same seed the same."""
    drawn = [samples.how_to_training_rows(50, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 50
