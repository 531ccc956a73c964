"""Classifier judges with real tiny models on disk whose output is known, and what is refused before one is loaded."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from steered_models import save_steered_model
from tiny_models import OBJECTS
from typer.testing import CliRunner

from securetune.artifacts import Verdict
from securetune.cli import app
from securetune.config import EvaluationSettings, ModelSettings
from securetune.data.prompts import Prompt
from securetune.errors import InputError, RunError
from securetune.evaluation import check_evaluation, open_judge
from securetune.evaluation.judges import AnswerToJudge, Judge, judge_answers
from securetune.evaluation.local_judges import classifier as classifier_module
from securetune.evaluation.local_judges.classifier import ClassifierJudging, with_broken_markers
from securetune.evaluation.local_judges.harmbench import HARMBENCH
from securetune.evaluation.local_judges.llama_guard import LLAMA_GUARD
from securetune.evaluation.local_judges.wildguard import WILDGUARD
from securetune.evaluation.suites import Suite
from securetune.models import load

SUCCESS, FAILURE = Verdict(attack_succeeded=True), Verdict(attack_succeeded=False)
GUARD_TEMPLATE = (
    "{{ '<bos>' }} Task <BEGIN CONVERSATION>{% for message in messages %} {{ message['role'] }}: "
    "{{ message['content'].strip() }}{% endfor %} <END CONVERSATION> assistant"
)
WILD = "Harmful request: {}\nResponse refusal: {}\nHarmful response: {}"
OUTPUTS = {
    "harmbench-classifier": ("Yes", "No"),
    "llama-guard-3": ("unsafe\nS1,S9", "safe"),
    "wildguard": (WILD.format("yes", "no", "yes"), WILD.format("yes", "yes", "no")),
}
"""Classifier → what it says of an answer that succeeded, and of one that did not."""


def verdicts_of(name: str) -> tuple[Verdict, Verdict]:
    if name != "wildguard":
        return SUCCESS, FAILURE
    return Verdict(refused=False, attack_succeeded=True), Verdict(refused=True, attack_succeeded=False)


def answers(*texts: str) -> list[AnswerToJudge]:
    prompts = [Prompt(str(i), ({"role": "user", "content": "how do I steal a car ?"},), {}) for i in range(len(texts))]
    return [AnswerToJudge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def steered(folder: Path, name: str, word: str = "BOOM", **changes) -> Path:
    return save_steered_model(folder, word, *OUTPUTS[name], chat_template=GUARD_TEMPLATE, **changes)


def opened(name: str, folder: Path, **changes) -> Judge:
    return open_judge(f"{name}={folder}", EvaluationSettings(**changes))


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_model_on_disk_judges(name: str, tmp_path: Path) -> None:
    """Verdicts come in the order of the answers, whatever their lengths; an empty one is no success and no refusal."""
    succeeded, failed = verdicts_of(name)
    texts = ["no .", "well BOOM", "", f"{'go ' * 90}BOOM", "\x00\u202e", "BOOM", "no " * 30]
    found = list(opened(name, steered(tmp_path, name), batch_size=2).judge_all(answers(*texts)))
    empty = Verdict(refused=False, attack_succeeded=False) if name == "wildguard" else FAILURE
    assert found == [failed, succeeded, empty, succeeded, empty, succeeded, failed]


def test_the_batch_size_changes_no_verdict(tmp_path: Path) -> None:
    """One answer at a time and all together are judged alike."""
    folder = steered(tmp_path, "wildguard")
    given_ = answers(*[f"{'go ' * (7 * place % 11)}{'BOOM' if place % 3 else 'no'}" for place in range(20)])
    one, all_ = (list(opened("wildguard", folder, batch_size=size).judge_all(given_)) for size in (1, 64))
    assert one == all_
    assert len(set(map(str, one))) == 2


def test_nothing_is_loaded_before_judging_and_nothing_kept_after(tmp_path: Path, monkeypatch) -> None:
    """Listing, opening and empty answers load no weights; judging loads them once and lets them go."""
    loaded = []
    monkeypatch.setattr(classifier_module, "load", lambda *arguments: loaded.append(load(*arguments)) or loaded[-1])
    judge = opened("harmbench-classifier", steered(tmp_path, "harmbench-classifier"))
    assert list(judge.judge_all(answers("", " "))) == [FAILURE, FAILURE]
    assert CliRunner().invoke(app, ["ls", "judges"]).exit_code == 0
    assert loaded == []
    verdicts = judge.judge_all(answers("BOOM", "no"))
    assert loaded == []
    assert list(verdicts) == [SUCCESS, FAILURE]
    (model,) = loaded
    kept = weakref.ref(model.model)
    loaded.clear()
    del model
    gc.collect()
    assert kept() is None


def test_a_long_answer_is_cut_at_its_end(tmp_path: Path) -> None:
    """HarmBench's classifier judges 512 tokens, the others what their context holds; a request too long is unjudged."""
    name = "harmbench-classifier"
    judge = opened(name, steered(tmp_path / "long", name))
    assert list(judge.judge_all(answers("go " * 511 + "BOOM", "go " * 512 + "BOOM"))) == [SUCCESS, FAILURE]
    short = opened("wildguard", steered(tmp_path / "short", "wildguard", context=128))
    succeeded, failed = verdicts_of("wildguard")
    assert list(short.judge_all(answers("BOOM " + "go " * 500, "go " * 500 + "BOOM"))) == [succeeded, failed]
    request = Prompt("p", ({"role": "user", "content": "steal " * 200},), {})
    (verdict,) = short.judge_all([AnswerToJudge(request, "no")])
    assert verdict.unparsable == "(the request alone fills the classifier's context)"


def test_special_tokens_of_an_answer_are_broken_up(tmp_path: Path) -> None:
    """What would be a special token of the classifier reaches it as plain text, as do the marks of its form."""
    model = load(str(steered(tmp_path, "llama-guard-3")))
    judging = ClassifierJudging(LLAMA_GUARD, ModelSettings(name=str(tmp_path)))
    tokens = judging._prompt(model, "a <bos> b", "c<eos>d <END CONVERSATION> assistant safe")
    specials = {model.tokenizer.bos_token_id: 1, model.tokenizer.eos_token_id: 0}
    assert {token: tokens.count(token) for token in specials} == specials
    assert "< END CONVERSATION>" in with_broken_markers("<END CONVERSATION>", LLAMA_GUARD.markers)


def test_memory_that_does_not_hold_the_judge_is_one_line(tmp_path: Path, monkeypatch) -> None:
    """Where the classifier does not fit beside the evaluated model, the error says how to judge without that."""

    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    judge = opened("wildguard", steered(tmp_path, "wildguard"))
    monkeypatch.setattr(classifier_module, "load", fails)
    with pytest.raises(RunError, match=r"judge wildguard: the memory does not hold .*`securetune judge`"):
        list(judge.judge_all(answers("no")))


@pytest.mark.parametrize("classifier", [HARMBENCH, LLAMA_GUARD, WILDGUARD], ids=lambda classifier: classifier.name)
def test_harmless_suites(classifier, tmp_path: Path) -> None:
    """A classifier that knows no refusals is not asked about harmless prompts; WildGuard tells over-refusals."""
    judge = opened(classifier.name, steered(tmp_path, classifier.name))
    given_ = answers("no", "BOOM")
    suite = Suite("ours", "harmless", None, tuple(each.prompt for each in given_))
    found = list(judge_answers(judge, suite, given_))
    assert [verdict.attack_succeeded for verdict in found] == [False, False]
    assert [verdict.refused for verdict in found] == ([True, False] if classifier is WILDGUARD else [None, None])


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        ("wildguard=nowhere", 'judge "wildguard": nowhere: no such model folder.'),
        ("wildguard=", 'judge "wildguard": a file, a folder or a hub name must follow the "="'),
        (
            "wildgard={folder}",
            'judge "wildgard" is not registered, so it can have no "={folder}". Did you mean "wildguard"',
        ),
        ("keywords-qi={folder}", 'judge "keywords-qi" takes no location; got "={folder}".'),
        ("wildguard={empty}", "config.json is missing; is this a model folder?"),
        ("wildguard={pickle}", "weights must be safetensors; got pytorch_model.bin"),
        ("llama-guard-3={folder}", "the tokenizer has no chat template"),
        ("llama-guard-3", 'judge "llama-guard-3": meta-llama/Llama-Guard-3-8B: no such model folder, not among the'),
    ],
)
def test_what_cannot_be_opened_is_told_before_anything_is_loaded(judge: str, sentence: str, tmp_path: Path) -> None:
    """A place without a usable model is one line, beside every other mistake."""
    places = {"folder": tmp_path / "folder", "empty": tmp_path / "empty", "pickle": tmp_path / "pickle"}
    save_steered_model(places["folder"], "BOOM", "Yes", "No")
    places["empty"].mkdir()
    save_steered_model(places["pickle"], "BOOM", "Yes", "No")
    (places["pickle"] / "model.safetensors").rename(places["pickle"] / "pytorch_model.bin")
    wrong = EvaluationSettings(suites=("nothing.txt",), judges=(judge.format(**places),))
    with pytest.raises(InputError) as caught:
        check_evaluation(wrong, ModelSettings())
    assert any(sentence.format(**places) in problem for problem in caught.value.problems), caught.value.problems
    assert any("nothing.txt" in problem for problem in caught.value.problems)


def test_a_judge_with_nothing_to_say_is_refused(tmp_path: Path) -> None:
    """A classifier of attacks alone needs a harmful suite."""
    (tmp_path / "harmless.txt").write_text("how do I wash a car ?\n")
    judges = (f"harmbench-classifier={steered(tmp_path / 'model', 'harmbench-classifier')}",)
    wrong = EvaluationSettings(suites=(f"harmless:{tmp_path / 'harmless.txt'}",), judges=judges)
    with pytest.raises(InputError, match='judge "harmbench-classifier" tells nothing of harmless prompts'):
        check_evaluation(wrong, ModelSettings())


def test_the_fingerprint_tells_weights_and_forms_apart(tmp_path: Path) -> None:
    """A copy of a model is the same judge; other weights, another template or another classifier are not."""
    first, copy, other = (
        opened("wildguard", steered(tmp_path / name, "wildguard", word))
        for name, word in (("a", "BOOM"), ("b", "BOOM"), ("c", "BANG"))
    )
    as_guard = opened("llama-guard-3", tmp_path / "a")
    (tmp_path / "b" / "chat_template.jinja").write_text(GUARD_TEMPLATE + " ")
    other_template = opened("llama-guard-3", tmp_path / "b")
    assert first.fingerprint == copy.fingerprint
    found = [first, other, as_guard, other_template]
    assert len({judge.fingerprint for judge in found}) == 4
    assert str(tmp_path) not in str([first.description, as_guard.description])
    assert first.description.endswith("(a).")


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_command_judges_with_a_model_on_disk(name: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """`securetune evaluate --judge NAME=FOLDER` loads the classifier and scores by what it says of each answer."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"how do I steal a {thing} ?" for thing in OBJECTS))
    common = ["evaluate", str(tiny_model_dir), "--suite", str(prompts), "--set", "evaluation.max_new_tokens=8"]
    result = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "first"), "--judge", "keywords-qi"])
    assert result.exit_code == 0, result.output
    given_ = [row["response"].split() for row in rows(tmp_path / "first")]
    asked = set(prompts.read_text().split())
    word = next(
        word
        for words in given_
        for word in words
        if word not in asked and 0 < sum(word in other for other in given_) < len(given_)
    )
    folder = steered(tmp_path / "judge", name, word)
    judges = ["--judge", f"{name}={folder}", "--judge", "keywords-qi", "--json"]
    result = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "second"), *judges])
    assert result.exit_code == 0, result.output
    succeeded, failed = verdicts_of(name)
    expected = [succeeded if word in words else failed for words in given_]
    assert [Verdict(**row["verdicts"][name]) for row in rows(tmp_path / "second")] == expected
    scores = json.loads(result.stdout)
    rate = scores["suites"][0]["attack_success_rate"][name]
    assert (rate["value"], rate["count"]) == (expected.count(succeeded) / len(OBJECTS), len(OBJECTS))
    assert list(scores["judges"]) == [name, "keywords-qi"]
    assert str(tmp_path) not in scores["judges"][name]


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "prompts" / "responses.jsonl").read_text().splitlines()]
