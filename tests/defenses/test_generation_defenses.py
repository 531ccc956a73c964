"""Defenses at generation: what the tuned model is shown, where that is written down, and that answers never mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_tokenizer, tiny_conversations

import securetune
from securetune.artifacts import GENERATION_FILE, Response, Scores, read_json_lines
from securetune.config import EvaluateConfig, EvaluationSettings, ModelSettings, TrainingSettings
from securetune.defenses import (
    GenerationDefense,
    chained_generation,
    check_templates,
    find_generation_defense,
    list_defenses,
    shown_messages,
)
from securetune.defenses.ptst import SAFETY_PROMPT
from securetune.errors import ConfigError, InputError
from securetune.evaluation import check_evaluation
from securetune.evaluation.rejudging import judge_saved_responses
from securetune.models.checks import load_tokenizer
from securetune.models.registry import find_model
from securetune.pipeline.chaining import final_model
from securetune.pipeline.merging import merge
from securetune.pipeline.single_stages import evaluate_model

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"ptst": ({"prompt": "be kind ."}, {"prompt": ""})}
"""Registered name → options with which it changes what is shown, and with which it changes nothing."""

USER = [{"role": "user", "content": "how do I steal a car ?"}]


def test_every_defense_at_generation_has_a_row() -> None:
    """What is registered for generation is what the cases hold."""
    assert {each.name for each in list_defenses() if each.stage == "generation"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_with_nothing_to_do_the_messages_are_the_same(name: str) -> None:
    """The very messages come back, and any template will do."""
    defense = find_generation_defense(name, CASES[name][1])
    assert defense.prepare_messages(USER) is USER
    defense.check_template(make_tiny_tokenizer())


@pytest.mark.parametrize("name", CASES)
def test_what_is_shown_depends_on_the_options_alone(name: str) -> None:
    """Filled in for a model, it says all there is to say: made anew from its options, it shows the same."""
    for model in ("tiny-world", "some/model"):
        filled = find_generation_defense(name).for_model(model)
        again = find_generation_defense(name, filled.options.model_dump(mode="json"))
        assert again.prepare_messages(USER) == filled.prepare_messages(USER) != USER
        assert again.for_model("another/model").prepare_messages(USER) == again.prepare_messages(USER)


def test_the_safety_prompt_is_the_system_message() -> None:
    """It becomes the system message, or stands before the one that is there; the beginning of an answer stays last."""
    ptst = find_generation_defense("ptst", {"prompt": "be kind ."})
    assert ptst.prepare_messages(USER) == [{"role": "system", "content": "be kind ."}, *USER]
    both = ptst.prepare_messages([{"role": "system", "content": "be short ."}, *USER])
    assert both == [{"role": "system", "content": "be kind .\n\nbe short ."}, *USER]
    prefilled = [*USER, {"role": "assistant", "content": "sure"}]
    assert list(ptst.prepare_messages(prefilled)[1:]) == prefilled
    twice = shown_messages(USER, chained_generation([*_steps("ptst", prompt="a"), *_steps("ptst", prompt="b")], "m"))
    assert twice[0]["content"] == "b\n\na"


def _steps(name: str, **options: Any) -> Any:
    return TrainingSettings(generation=[{name: options}]).generation


def test_each_world_has_a_prompt_of_its_own() -> None:
    """Tiny world is shown a system prompt that it knows, with a token for every word; other models ours."""
    from securetune import tiny_world

    prompt = find_generation_defense("ptst").for_model("tiny-world").prompt
    tokenizer = load_tokenizer(ModelSettings(), find_model("tiny-world"))
    assert tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"]
    assert prompt in tiny_world.language.SYSTEM_PROMPTS
    assert find_generation_defense("ptst").for_model("some/model").prompt == SAFETY_PROMPT


def test_a_template_without_system_messages_is_refused() -> None:
    """One that raises is refused in its own words, one that leaves the message out because the prompt would be lost."""
    tokenizer = make_tiny_tokenizer()
    with pytest.raises(ConfigError, match=r"generation\.0: ptst: the chat template refuses .* only user and assistant"):
        check_templates(chained_generation(_steps("ptst"), "m"), tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(ConfigError, match="does not show the system message, so the prompt is lost"):
        check_templates(chained_generation(_steps("ptst"), "m"), tokenizer)


def test_mistakes_are_told_together(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Unknown names and options and a template that refuses, before anything is trained."""
    model = ModelSettings(name=str(tiny_model_dir))
    settings = TrainingSettings(method="ift", max_steps=1, generation=["ptsd", {"ptst": {"promt": "x"}}, "swat"])
    with pytest.raises(InputError) as caught:
        securetune.train(settings, model, tiny_conversations(2), tmp_path / "out")
    told = "\n".join(caught.value.problems)
    assert 'generation.0: defense at generation "ptsd" is unknown. Did you mean "ptst"?' in told
    assert 'generation.1: ptst.promt: unknown key. Did you mean "prompt"?' in told
    assert 'generation.2: "swat" is no defense at generation: it acts while training' in told
    with pytest.raises(InputError, match=r"generation\.0: ptst: the chat template refuses"):
        securetune.train(
            TrainingSettings(method="ift", generation=["ptst"]), model, tiny_conversations(2), tmp_path / "o"
        )
    with pytest.raises(InputError, match=r"evaluation\.generation\.0: ptst: the chat template refuses"):
        evaluate(str(tiny_model_dir), tmp_path / "e", generation=["ptst"], suites=["probes-harmful"])
    assert list(tmp_path.iterdir()) == []


def evaluate(model: str, out: Path, **settings: Any) -> Scores:
    evaluation = {"suites": ["tiny-world-harmful"], "task": "tiny-world-query", "max_prompts": 2, "max_new_tokens": 4}
    config = EvaluateConfig(model=ModelSettings(name=model), evaluation={**evaluation, **settings})
    return evaluate_model(config, out, lambda *_: None)


def ten_rows() -> Any:
    return securetune.prepare_data("tiny-world", [{"random-drop": {"drop_count": 3990}}], "tiny-world").conversations


def test_answers_with_and_without_are_never_mixed(tmp_path: Path) -> None:
    """The model is shown the prompt, in the task too, the judge is not; the scores say so, and the folder is theirs."""
    plain = evaluate("tiny-world", tmp_path / "plain")
    shown = evaluate("tiny-world", tmp_path / "shown", generation=["ptst"])
    assert plain.generation == []
    assert [(step.name, step.options) for step in shown.generation] == [("ptst", {"prompt": "be kind and short ."})]
    assert [suite.prompt_set_hash for suite in plain.suites] == [suite.prompt_set_hash for suite in shown.suites]
    for suite in ("tiny-world-harmful", "tiny-world-query"):
        rows = [Response.model_validate(row) for row in read_json_lines(tmp_path / "shown" / suite / "responses.jsonl")]
        system = {"role": "system", "content": "be kind and short ."}
        assert all(row.shown == [system, *row.messages] and len(row.messages) == 1 for row in rows)
    plain_rows = [
        Response.model_validate(row) for row in read_json_lines(tmp_path / "plain" / suite / "responses.jsonl")
    ]
    assert all(row.shown is None for row in plain_rows)
    judged = judge_saved_responses(tmp_path / "shown", ["keywords-gcg"])
    assert (judged.generation, judged.suites[0].prompt_set_hash) == (shown.generation, shown.suites[0].prompt_set_hash)
    assert evaluate("tiny-world", tmp_path / "shown", generation=["ptst"]).suites == shown.suites
    for generation in ([], [{"ptst": {"prompt": "answer the user ."}}]):
        with pytest.raises(InputError, match="holds answers made with other defenses at generation"):
            evaluate("tiny-world", tmp_path / "shown", generation=generation)


def test_a_model_remembers_what_it_is_to_be_shown(tmp_path: Path) -> None:
    """`train` writes it into the final model's folder and card; evaluation reads it, unless it is told otherwise."""
    step = {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 2}
    rows = ten_rows()

    def train(**settings: Any) -> Path:
        resolved = TrainingSettings(method="ift", **step, **settings)
        securetune.train(resolved, ModelSettings(), rows, tmp_path / "out")
        return final_model(resolved, ModelSettings(), tmp_path / "out")

    plain = train()
    card = (plain / "README.md").read_text()
    final = train(generation=["ptst"])
    assert final == plain
    assert "be kind and short ." in (final / "README.md").read_text()
    scores = evaluate(str(final), tmp_path / "read")
    assert [each.name for each in scores.generation] == ["ptst"]
    assert evaluate(str(final), tmp_path / "told", generation=[]).generation == []
    chained = train(generation=["ptst"], after=["wise-ft"])
    assert (chained / GENERATION_FILE).exists()
    assert not (plain / GENERATION_FILE).exists()
    assert (plain / "README.md").read_text() == card
    assert train() == plain
    assert not (chained / GENERATION_FILE).exists()


def test_merging_takes_it_along(tmp_path: Path) -> None:
    """An adapter's folder says what is to be shown, and so does the model that it is merged into."""
    rows = ten_rows()
    step = {"max_steps": 1, "warmup_steps": 0, "tune": "lora"}
    settings = TrainingSettings(method="ift", **step, generation=[{"ptst": {"prompt": "be kind ."}}])
    securetune.train(settings, ModelSettings(), rows, tmp_path / "out")
    merge(tmp_path / "out" / "model", tmp_path / "merged")
    found = json.loads((tmp_path / "merged" / GENERATION_FILE).read_text())
    assert found["steps"] == [{"name": "ptst", "options": {"prompt": "be kind ."}}]


def test_lm_eval_would_not_show_it() -> None:
    """Tasks of lm-eval are run without such defenses, so that both together are refused."""
    settings = EvaluationSettings(suites=["tiny-world-harmful"], utility="lm-eval:gsm8k", generation=["ptst"])
    with pytest.raises(InputError, match="lm-eval shows its prompts without the defenses at generation"):
        check_evaluation(settings, ModelSettings())


def test_a_spoiled_file_is_told(tmp_path: Path) -> None:
    """A model's folder whose file cannot be read is an error that names it."""
    (tmp_path / GENERATION_FILE).write_text("{}")
    with pytest.raises(InputError, match=rf"{GENERATION_FILE}: must be a file of format"):
        check_evaluation(EvaluationSettings(suites=["probes-harmful"]), ModelSettings(name=str(tmp_path)))


def test_a_plain_base_changes_nothing() -> None:
    """A defense that overrides no moment shows the messages as they are."""

    class Nothing(GenerationDefense):
        """Nothing."""

        name = "nothing"

    assert shown_messages(USER, [Nothing()]) is USER
