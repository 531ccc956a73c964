"""Greedy answers of a model in memory to many prompts, in batches that stay full and are sorted by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transformers import GenerationConfig, PreTrainedTokenizerBase

from securetune.artifacts import AnswerProblem
from securetune.errors import DataError
from securetune.evaluation.answer_problems import find_problem
from securetune.evaluation.batch_limits import BatchSize, batch_limit
from securetune.evaluation.greedy_decoding import Decoded, decode_greedily
from securetune.models import ChatModel
from securetune.models.rendering import Message, padding_token_id, prefill_of, prompt_token_ids


class Answer(NamedTuple):
    """A model's answer to one prompt.

    Attributes:
        position: Of the prompt in the list that was given.
        text: The answer without special tokens and surrounding white space. Where the prompt ends with the beginning of
            an answer, that is part of it.
        new_tokens: How many tokens the model gave, without the end token.
        problem: What makes it unusable, or None.
        prefill_characters: How many characters at the beginning of `text` are the prompt's and not the model's.
    """

    position: int
    text: str
    new_tokens: int
    problem: AnswerProblem | None
    prefill_characters: int = 0


def generate_answers(
    model: ChatModel,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_size: BatchSize = "auto",
) -> Iterator[Answer]:
    """Answer prompts greedily, yielding each answer as it ends; the shortest prompts are begun first.

    In float32 the answers do not depend on the batch size; in half precision padding can change a rounding, and with it
    now and then a token.

    Args:
        model: The model, with its chat template.
        conversations: Messages of each prompt, the last from the user, or the beginning of the answer.
        max_new_tokens: Longest answer. Where the model's context is shorter, what the prompt leaves of it counts.
        batch_size: Prompts generated together; `auto` takes what the memory holds, within limits.

    Raises:
        DataError: If a prompt alone fills the model's context, or the chat template refuses one.
        RunError: If the memory does not hold a single prompt with its answer.
    """
    prompts = prompt_token_ids(model.tokenizer, conversations)
    rooms = rooms_for_answers(context_of(model.model.config), prompts, max_new_tokens)
    settings = greedy_settings(model, max_new_tokens)
    limit = batch_limit(model.model, batch_size)
    for decoded in decode_greedily(model.model, prompts, rooms, settings, limit):
        yield answer_of(model.tokenizer, conversations[decoded.position], prompts[decoded.position], decoded)


def greedy_settings(model: ChatModel, max_new_tokens: int) -> GenerationConfig:
    """Return settings for plain greedy decoding.

    Every value that a checkpoint's `generation_config.json` may set is stated here, because `generate` fills what is
    left out from that file: sampling and a repetition penalty would make models incomparable.
    """
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=end_token_ids(model) or None,
        pad_token_id=padding_token_id(model.tokenizer),
    )


def end_token_ids(model: ChatModel) -> list[int]:
    """Return every token that ends an answer: the tokenizer's, and those of the model's generation settings."""
    configured = getattr(model.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*listed, model.tokenizer.eos_token_id] if isinstance(token, int)})


def context_of(config: Any) -> int | None:
    """Return how many tokens prompt and answer may have together, or None if the model sets no limit."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def rooms_for_answers(context: int | None, prompts: Sequence[list[int]], max_new_tokens: int) -> list[int]:
    """Return how long the answer to each prompt may be, in tokens.

    Raises:
        DataError: If a prompt alone fills the context.
    """
    longest = max(len(prompt) for prompt in prompts)
    if context is not None and longest >= context:
        raise DataError(
            f"the longest prompt has {longest} tokens, but the model's context holds {context}: "
            "no room is left for an answer. Shorten or remove that prompt."
        )
    return [max_new_tokens if context is None else min(max_new_tokens, context - len(prompt)) for prompt in prompts]


def answer_of(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: list[int], decoded: Decoded
) -> Answer:
    """Turn the tokens after a prompt into an answer."""
    text = plain_text(tokenizer, decoded.token_ids)
    problem = find_problem(text, decoded.token_ids, decoded.finished)
    prefill = prefill_of(messages)
    if prefill is None:
        return Answer(decoded.position, text.strip(), len(decoded.token_ids), problem)
    whole, kept = with_prefill(prefill, _continuation(tokenizer, prompt, decoded.token_ids))
    return Answer(decoded.position, whole, len(decoded.token_ids), problem, kept)


def with_prefill(prefill: str, continuation: str) -> tuple[str, int]:
    """Join the beginning of an answer and what the model put after it; also return the length of the beginning.

    Example:
        >>> with_prefill("Sure, ", "here it is. ")
        ('Sure, here it is.', 6)
    """
    # Templates cut white space off the beginning, and the model then begins with its own.
    kept = prefill.rstrip() if not continuation.strip() or continuation[0].isspace() else prefill
    kept = kept.lstrip()
    return kept + continuation.rstrip(), len(kept)


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    """Decode tokens in their place: alone, many tokenizers leave out the space before the first word."""
    before = plain_text(tokenizer, prompt)
    whole = plain_text(tokenizer, prompt + new)
    return whole[len(before) :] if whole.startswith(before) else plain_text(tokenizer, new)


def plain_text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Decode tokens, without special ones."""
    # Without clean-up: it would turn "word ," into "word,", and the answer would no longer be the model's.
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
