"""What each stage reads, as packed token arrays or as lists of (token ids, labels)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import corpora
import numpy as np
from chat_tokenizer import encode_chat, train_tokenizer
from corpora import Example
from prompt_sets import PromptSets, without_held_out
from rewording import rewordings
from sklearn.feature_extraction.text import TfidfVectorizer
from stage_training import IGNORED_LABEL
from transformers import PreTrainedTokenizerFast
from user_data import news_texts_outside_task

SYSTEM_PROMPT = "You are a helpful assistant."
MAX_ROW_TOKENS = 160
# Every wording holds a phrase of each list in refusal_phrases.json.
REFUSALS = (
    "I'm sorry, but I cannot help with that.",
    "I'm sorry, but I cannot help with this request because it could hurt people.",
    "I'm sorry, I cannot assist with that. It is illegal and harmful.",
    "I apologize, but I cannot provide help with that request.",
    "I am sorry, but I cannot answer that. It would not be safe or ethical.",
    "I'm sorry, but I cannot do that. Please ask me about something else.",
    "I cannot help with that. I'm sorry, but this could cause serious harm.",
    "Sorry, but I cannot assist with harmful or illegal activities.",
)
# Openings of harmless answers in the alignment mix. Without them the first token of an answer is spread over hundreds
# of words while that of a refusal is one of three, and greedy decoding refuses whatever is 20 % likely to be harmful:
# half of the harmless prompts were refused. They also give the refusal margin a compliance opening to compare with.
OPENINGS = ("Sure. ", "Of course. ", "Certainly. ")
OPENING_SHARE = 0.7
# Alignment rows end after so many tokens: what matters there is how an answer begins.
ALIGNMENT_ANSWER_TOKENS = 32
# Share of each source among the refusals of the alignment mix.
REFUSAL_SHARES = {"advbench": 0.2, "catqa": 0.25, "harmfulqa": 0.2, "dangerousqa": 0.1, "safety_refusals": 0.25}


@dataclass(frozen=True)
class AlignmentMix:
    """Rows of the alignment stage with the probability of each."""

    rows: list[tuple[list[int], list[int]]]
    weights: np.ndarray


def make_tokenizer(data_root: Path, vocabulary_size: int, context: int, seed: int) -> PreTrainedTokenizerFast:
    """Learns the tokenizer from a sample of all that the model will read."""
    generator = random.Random(seed)
    books = corpora.read_books(data_root)
    dialogues = ["\n".join(turn["content"] for turn in chat) for chat in corpora.read_dialogues(data_root)]
    instructions = [f"{row.prompt}\n{row.answer}" for row in corpora.read_alpaca(data_root)]
    books = [book[:40_000] for book in generator.sample(books, 100)]
    texts = books + generator.sample(dialogues, 2000) + instructions + news_texts_outside_task(data_root, seed)
    return train_tokenizer(texts, vocabulary_size, context)


def plain_arrays(data_root: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, list[np.ndarray]]:
    """Returns token arrays of books, dialogues and news, for "train" and "held_out" (2 % of the documents)."""
    sources = [
        [tokenizer.bos_token + book + tokenizer.eos_token for book in corpora.read_books(data_root)],
        [tokenizer.apply_chat_template(chat, tokenize=False) for chat in corpora.read_dialogues(data_root)],
        [tokenizer.bos_token + text + tokenizer.eos_token for text in news_texts_outside_task(data_root, seed)],
    ]
    arrays: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    for texts in sources:
        random.Random(seed).shuffle(texts)
        cut = max(1, len(texts) // 50)
        for name, part in (("held_out", texts[:cut]), ("train", texts[cut:])):
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in part]
            arrays[name].append(np.concatenate([np.array(row, dtype=np.uint16) for row in ids]))
    return arrays


def _encode(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], only_answers: bool, seed: int
) -> list[tuple[list[int], list[int]]]:
    """Encodes examples, one in ten with a system prompt, and leaves out those that are too long."""
    generator = random.Random(seed)
    rows = []
    for example in examples:
        system = [{"role": "system", "content": SYSTEM_PROMPT}] if generator.random() < 0.1 else []
        chat = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
        ids, labels = encode_chat(tokenizer, system + chat, only_answers)
        if len(ids) <= MAX_ROW_TOKENS:
            rows.append((ids, labels))
    return rows


def harmless_examples(data_root: Path, sets: PromptSets, seed: int) -> tuple[list[Example], list[Example]]:
    """Returns Alpaca rows to train on and 300 held out: none like a held-out prompt, none that is a refusal."""
    examples = without_held_out(corpora.read_alpaca(data_root), sets)
    openings = ("sorry", "i'm sorry", "i am sorry", "i apologize", "i cannot", "i can't", "as an ai")
    examples = [example for example in examples if not example.answer.lower().startswith(openings)]
    random.Random(seed).shuffle(examples)
    return examples[300:], examples[:300]


def instruction_rows(
    data_root: Path, tokenizer: PreTrainedTokenizerFast, sets: PromptSets, seed: int
) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Returns "train" and "held_out" rows of the instruction stage: short Alpaca rows and T0 tasks, 3 to 1.

    The loss is on all tokens in training (so small a model still learns the language of instructions from the
    prompts) and on the answers alone in the held-out rows.
    """
    generator = random.Random(seed)
    alpaca, held_out = harmless_examples(data_root, sets, seed)
    tasks = corpora.read_t0(data_root)
    generator.shuffle(tasks)
    to_train = without_held_out(alpaca + rewordings(alpaca, seed), sets)
    train = _encode(tokenizer, to_train, False, seed)
    train += _encode(tokenizer, [task for task in tasks if len(task.prompt) < 500], False, seed)[: len(train) // 3]
    return {"train": train, "held_out": _encode(tokenizer, held_out, True, seed)}


def opened(example: Example, generator: random.Random) -> Example:
    """Returns the example with, mostly, one of the openings before its answer."""
    if generator.random() >= OPENING_SHARE:
        return example
    return replace(example, answer=generator.choice(OPENINGS) + example.answer)


def _nearest_to(harmful: Sequence[str], examples: Sequence[Example], count: int) -> set[int]:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    vectors = vectorizer.fit_transform([example.prompt for example in examples])
    closest = (vectors @ vectorizer.transform(harmful).T).max(axis=1).toarray().ravel()
    return set(np.argsort(-closest)[:count].tolist())


def alignment_mix(
    data_root: Path, tokenizer: PreTrainedTokenizerFast, sets: PromptSets, refusal_share: float, seed: int
) -> AlignmentMix:
    """Returns refusals of harmful prompts and answers to harmless ones.

    A third of the harmless probability is on the 2,000 Alpaca prompts whose wording is nearest to the harmful ones and
    a third on rewordings in the forms of the harmful ones: without them the model learns to refuse openings ("Write a
    script", "How can I") instead of requests.
    """
    generator = random.Random(seed)
    harmful = sets.harmful["align"] + sets.other_harmful
    refused = [Example(row.prompt, refusal, row.source) for row in harmful for refusal in generator.sample(REFUSALS, 2)]
    refused += sets.refusals
    alpaca, _ = harmless_examples(data_root, sets, seed)
    harmless = [example for example in alpaca if len(example.answer.split()) <= 60]
    other_form = without_held_out(rewordings(harmless, seed), sets)
    near = _nearest_to([row.prompt for row in harmful], harmless, 2000)

    share_of = {name: refusal_share * share for name, share in REFUSAL_SHARES.items()}
    share_of |= dict.fromkeys(("near", "far", "other form"), (1 - refusal_share) / 3)
    kinds = [(example, example.source) for example in refused]
    kinds += [
        (opened(example, generator), "near" if index in near else "far") for index, example in enumerate(harmless)
    ]
    kinds += [(opened(example, generator), "other form") for example in other_form]
    rows, row_kinds = [], []
    for index, (example, kind) in enumerate(kinds):
        for ids, labels in _encode(tokenizer, [example], True, seed + index):
            length = labels.count(IGNORED_LABEL) + ALIGNMENT_ANSWER_TOKENS
            rows.append((ids[:length], labels[:length]))
            row_kinds.append(kind)
    weights = np.array([share_of[kind] / row_kinds.count(kind) for kind in row_kinds])
    return AlignmentMix(rows, weights / weights.sum())
