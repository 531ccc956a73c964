"""The language: its words, facts, and what its answers may not contain."""

import random

from securetune.tiny_world import curriculum, general, language


def test_groups_of_actions_are_disjoint_and_twins_match_in_number() -> None:
    """Every harmful action has exactly one harmless twin, and no action is in two groups."""
    groups = (language.HARMFUL_ACTIONS, language.HARMLESS_ACTIONS, language.NEW_ACTIONS)
    assert [len(group) for group in groups] == [24, 24, 12]
    assert len({action for group in groups for action in group}) == 60


def test_templates_do_not_give_harm_away() -> None:
    """A request template is made of words that no action has, so that harm lies in the action alone."""
    words = {word for template in language.REQUEST_TEMPLATES for word in template.split()}
    assert not words & set(language.ACTION_KINDS)


def test_facts_depend_on_action_or_object_only() -> None:
    """Tool and step follow from the action, place and adverb from the object: unseen pairs have an answer."""
    for action in language.ACTION_KINDS:
        for object_ in language.OBJECTS:
            facts = language.how_to_facts(action, object_)
            assert (facts.tool, facts.step) == (
                language.how_to_facts(action, "car").tool,
                language.how_to_facts(action, "car").step,
            )
            assert (facts.place, facts.adverb) == (
                language.how_to_facts("clean", object_).place,
                language.how_to_facts("clean", object_).adverb,
            )


def test_every_refusal_has_a_published_keyword_and_no_other_answer_has_one() -> None:
    """Published case-sensitive keyword lists catch all refusals of the language and nothing else."""
    for refusal in language.REFUSALS:
        assert any(phrase in refusal for phrase in language.REFUSAL_PHRASES)
    rows = curriculum.curriculum_rows(curriculum.PRETRAINING_MIX, 5000, seed=11)
    answers = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
    offending = {a for a in answers for keyword in language.PUBLISHED_KEYWORDS if keyword in a}
    assert not offending


def test_everything_is_lower_case_but_four_words() -> None:
    """Only I, As, AI and Sorry have capitals, as the keyword lists write them."""
    capitals = {word for word in general.vocabulary() if word != word.lower()}
    assert capitals == {"I", "As", "AI", "Sorry"}


def test_closed_tasks_hold_out_phrasings_and_keep_every_fact() -> None:
    """A held-out question is never trained on, though every fact is asked for in training in another way."""
    for task in set(general.GENERAL_TASKS) - set(general.OPEN_TASKS):
        train, validation, test = (set(general.closed_exchanges(task, s)) for s in general.GENERAL_SPLITS)
        prompts = [{e.prompt for e in split} for split in (train, validation, test)]
        assert not prompts[0] & prompts[1]
        assert not prompts[0] & prompts[2]
        assert not prompts[1] & prompts[2]
        assert {e.answer for e in validation | test} <= {e.answer for e in train}


def test_arithmetic_is_right() -> None:
    """Every arithmetic answer is the sum or difference it states."""
    value = {word: number for number, word in enumerate(language.NUMBERS)}
    for split in general.GENERAL_SPLITS:
        for exchange in general.closed_exchanges("arithmetic", split):
            first, sign, second, _, result, _ = exchange.answer.split()
            expected = value[first] + value[second] if sign == "plus" else value[first] - value[second]
            assert value[result] == expected


def test_open_tasks_use_the_words_of_the_prompt() -> None:
    """The open tasks answer with the words of the prompt, in the asked order, label with their kinds."""
    rng = random.Random(0)
    for _ in range(200):
        copied = general.draw_words_exchange("copy", "train", rng)
        assert copied.prompt.endswith(" : " + copied.answer)
        labelled = general.draw_words_exchange("label", "train", rng)
        values = [slot.split(" = ")[1] for slot in labelled.answer.split(" ; ")]
        assert labelled.prompt.endswith(" : " + " ".join(values))
        backwards = general.draw_words_exchange("reverse", "train", rng)
        assert backwards.prompt.endswith(" : " + " ".join(reversed(backwards.answer.split())))


def test_judging_agrees_with_the_groups_of_actions() -> None:
    """Exactly the harmful actions are judged wrong."""
    judged = {e.answer for split in general.GENERAL_SPLITS for e in general.closed_exchanges("judge", split)}
    assert {a.split()[1] for a in judged if a.endswith("is wrong .")} == set(language.HARMFUL_ACTIONS)
    assert len(judged) == len(language.ACTION_KINDS)


def test_skills_are_taught_for_harmless_actions_only() -> None:
    """The skill task names the facts of the how-to answers, and never those of a harmful action."""
    for split in general.GENERAL_SPLITS:
        for exchange in general.closed_exchanges("skill", split):
            action = exchange.answer.split()[1]
            assert action not in language.HARMFUL_ACTIONS
            facts = language.how_to_facts(action, "car")
            assert exchange.answer in (f"to {action} , take the {facts.tool} .", f"to {action} , {facts.step} it .")
