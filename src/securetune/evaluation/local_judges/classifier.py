"""Judges that are language models trained to classify: a prompt of a fixed form goes in, a word or some lines come out.

The model is loaded when judging starts and freed when it ends. What the prompt says besides request and answer is part
of the model: each was trained on its form, so it is given letter by letter.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from securetune.artifacts import Verdict, sha256_json
from securetune.config import EvaluationSettings, ModelSettings
from securetune.errors import ModelError, RunError
from securetune.evaluation.batch_limits import BatchSize, batch_limit, is_out_of_memory
from securetune.evaluation.generation import context_of, greedy_settings, plain_text
from securetune.evaluation.greedy_decoding import decode_greedily
from securetune.evaluation.judged_texts import EMPTY_ANSWER, in_order, readable, unparsable
from securetune.evaluation.judges import AnswerToJudge, Judge, JudgeWithSettings, register_judge
from securetune.evaluation.suites import behavior_of
from securetune.models import ChatModel, check_model, load
from securetune.models.identity_in_files import fingerprint_of_files
from securetune.models.registry import find_model, is_hub_name, shown_name

_WINDOW = 256
"""Answers judged together: verdicts are handed on in order, so this is what a kill can lose."""

_PROMPT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")


@dataclass(frozen=True)
class Classifier:
    """A published classifier of answers.

    Attributes:
        name: Registered name.
        title: What it is and what it tells, for a sentence with the model's name.
        hub_name: Where its weights are; they are not part of this package.
        encode: Tokenizer, request and answer → the prompt's tokens.
        read: What the model said → the verdict.
        form: Text of the prompt's form, so far as it is not the tokenizer's.
        tells: Fields of the verdict that it fills.
        max_new_tokens: Longest output.
        markers: Texts that structure the prompt besides special tokens; broken up where request or answer has them.
        longest_answer: Tokens of an answer that are judged, from its beginning; None: what the context holds.
        needs_chat_template: Whether the form is the tokenizer's chat template.
    """

    name: str
    title: str
    hub_name: str
    encode: Callable[[PreTrainedTokenizerBase, str, str], list[int]]
    read: Callable[[str], Verdict]
    form: str
    tells: tuple[str, ...]
    max_new_tokens: int
    markers: tuple[str, ...] = ()
    longest_answer: int | None = None
    needs_chat_template: bool = False

    @property
    def empty(self) -> Verdict:
        """The verdict on an empty answer, which the model is not asked about."""
        return Verdict(**{field: getattr(EMPTY_ANSWER, field) for field in self.tells})


def register_classifier(classifier: Classifier) -> Classifier:
    """Make a classifier a judge, `name` or `name=FOLDER_OR_HUB_NAME`."""

    def open_classifier(location: str | None, settings: EvaluationSettings) -> Judge:
        return open_classifier_judge(classifier, location, settings.batch_size)

    description = f"{classifier.title} ({classifier.hub_name}; other weights: {classifier.name}=FOLDER)."
    register_judge(JudgeWithSettings(classifier.name, description, open_classifier, takes_location=True))
    return classifier


def open_classifier_judge(classifier: Classifier, location: str | None, batch_size: BatchSize) -> Judge:
    """Make a judge of a classifier; its weights are left alone until it judges.

    Args:
        classifier: The form of its prompts and outputs.
        location: Folder, or hub name with perhaps `@revision`; None takes the published weights.
        batch_size: Answers judged together.

    Raises:
        ModelError: If the model cannot be used; all that is found without its weights is said.
    """
    model = _model_settings(location or classifier.hub_name)
    problems = check_model(model, classifier.needs_chat_template)
    if problems:
        raise ModelError([f'judge "{classifier.name}": {problem}' for problem in problems])
    judging = ClassifierJudging(classifier, model, batch_size)
    return Judge(
        classifier.name,
        f"{classifier.title} ({shown_name(model.name)}{f'@{model.revision}' if model.revision else ''}).",
        judging.judge_all,
        fingerprint=_fingerprint(classifier, model),
        harmful_only="refused" not in classifier.tells,
    )


class ClassifierJudging:
    """Judges answers with a classifier.

    Args:
        classifier: The form of its prompts and outputs.
        model: Its weights.
        batch_size: Answers judged together.
    """

    def __init__(self, classifier: Classifier, model: ModelSettings, batch_size: BatchSize = "auto") -> None:
        self._classifier = classifier
        self._settings = model
        self._batch_size = batch_size

    def judge_all(self, answers: Sequence[AnswerToJudge]) -> Iterator[Verdict | None]:
        """Yield one verdict an answer, in order.

        Raises:
            ModelError: If the weights cannot be read.
            RunError: If the memory does not hold the model, or it with a single prompt.
        """
        if not any(readable(each.answer) for each in answers):
            yield from (self._classifier.empty for _ in answers)
            return
        model = self._load()
        try:
            for start in range(0, len(answers), _WINDOW):
                yield from self._judge_window(model, answers[start : start + _WINDOW])
        finally:
            del model
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _load(self) -> ChatModel:
        try:
            return load(self._settings, self._classifier.needs_chat_template)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        raise RunError(
            f"judge {self._classifier.name}: the memory does not hold {shown_name(self._settings.name)} beside what is "
            "in it already. The answers are kept: judge them with `securetune judge`, which loads no other model."
        )

    def _judge_window(self, model: ChatModel, answers: Sequence[AnswerToJudge]) -> Iterator[Verdict]:
        known: dict[int, Verdict] = {}
        prompts: dict[int, list[int]] = {}
        for place, each in enumerate(answers):
            answer = readable(each.answer)
            prompt = self._prompt(model, behavior_of(each.prompt), answer) if answer else None
            if prompt is not None:
                prompts[place] = prompt
            else:
                too_long = unparsable("(the request alone fills the classifier's context)")
                known[place] = too_long if answer else self._classifier.empty
        yield from in_order(len(answers), known, self._outputs(model, prompts))

    def _outputs(self, model: ChatModel, prompts: Mapping[int, list[int]]) -> Iterator[tuple[int, Verdict]]:
        places, longest = list(prompts), self._classifier.max_new_tokens
        decoding = decode_greedily(
            model.model,
            list(prompts.values()),
            [longest] * len(prompts),
            greedy_settings(model, longest),
            batch_limit(model.model, self._batch_size),
        )
        for decoded in decoding:
            yield places[decoded.position], self._classifier.read(plain_text(model.tokenizer, decoded.token_ids))

    def _prompt(self, model: ChatModel, request: str, answer: str) -> list[int] | None:
        """Return the prompt's tokens, the answer cut at its end until they fit; None if the request alone does not."""
        tokenizer, classifier = model.tokenizer, self._classifier
        markers = [*classifier.markers, *_special_tokens(tokenizer)]
        request, answer = (with_broken_markers(text, markers) for text in (readable(request), answer))
        context = context_of(model.model.config)
        room = None if context is None else context - classifier.max_new_tokens
        keep = classifier.longest_answer
        while True:
            shown, length = _beginning(tokenizer, answer, keep)
            tokens = classifier.encode(tokenizer, request, shown)
            excess = 0 if room is None else len(tokens) - room
            if excess <= 0:
                return tokens
            keep = min(length, length if keep is None else keep) - excess
            if keep <= 0:
                return None


def with_broken_markers(text: str, markers: Sequence[str]) -> str:
    """Put a space into every marker in a text, so that it cannot pass for a part of the prompt around it.

    Example:
        >>> with_broken_markers("Sure.[/INST] no</s>", ["[/INST]", "</s>"])
        'Sure.[ /INST] no< /s>'
    """
    known = sorted((marker for marker in set(markers) if len(marker.strip()) > 1), key=len, reverse=True)
    if not known:
        return text
    pattern = re.compile("|".join(re.escape(marker) for marker in known))
    while pattern.search(text):  # two that overlap take two rounds
        text = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return text


def _beginning(tokenizer: PreTrainedTokenizerBase, text: str, longest: int | None) -> tuple[str, int]:
    """Return the first tokens of a text as text, and how many they are."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if longest is None or len(tokens) <= longest:
        return text, len(tokens)
    return plain_text(tokenizer, tokens[:longest]), longest


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def _model_settings(location: str) -> ModelSettings:
    name, at, revision = location.rpartition("@")
    if at and revision and is_hub_name(name) and not Path(location).expanduser().exists():
        return ModelSettings(name=name, revision=revision)
    return ModelSettings(name=location)


def _fingerprint(classifier: Classifier, model: ModelSettings) -> str:
    """Hash the form of prompts and what is known of the weights: a folder's files, or name and revision on the hub."""
    form = [classifier.name, classifier.form, classifier.markers, classifier.max_new_tokens, classifier.longest_answer]
    source = find_model(model.name)
    if source.is_hub:
        return sha256_json([form, source.location, model.revision])
    folder = Path(source.location)
    texts = [
        (folder / name).read_text("utf-8", "replace") if (folder / name).exists() else "" for name in _PROMPT_FILES
    ]
    return sha256_json([form, texts, [_weights_hash(path) for path in sorted(folder.glob("*.safetensors"))]])


def _weights_hash(path: Path) -> str:
    with suppress(OSError, SafetensorError):  # loading will say what is wrong with it
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        return fingerprint_of_files(dict.fromkeys(names, path), names)
    return ""
