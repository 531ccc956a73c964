"""Greedy answers and the share of them that a keyword list calls refusals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Matched anywhere in the answer, without regard to case. The list's own name in refusal_phrases.json.
REFUSAL_LIST = "Refusal direction (JailbreakBench phrases)"


@dataclass(frozen=True)
class RefusalCount:
    """How many of the answers are refusals, and some answers to look at."""

    refusals: int
    prompts: int
    empty_answers: int
    examples: list[dict[str, str]]

    @property
    def refusal_rate(self) -> float:
        """Share of prompts that were refused; NaN without prompts."""
        return self.refusals / self.prompts if self.prompts else float("nan")


@torch.inference_mode()
def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int = 48,
    batch_size: int = 48,
) -> list[str]:
    """Returns the model's greedy answers, in the order of the prompts."""
    network: Any = model.eval()  # the type of `PreTrainedModel` does not know `generate`
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs: Any = tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompts[index]}] for index in chosen],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        inputs.pop("token_type_ids", None)
        output = network.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
    return answers


def is_refusal(answer: str, phrases: Sequence[str]) -> bool:
    """Returns whether the answer holds one of the phrases; a typographic apostrophe counts as a plain one."""
    plain = answer.replace("\u2019", "'").lower()
    return any(phrase.lower() in plain for phrase in phrases)


def count_refusals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], phrases: Sequence[str]
) -> RefusalCount:
    """Answers the prompts and counts the refusals."""
    answers = answer_prompts(model, tokenizer, prompts)
    examples = [{"prompt": p, "answer": a} for p, a in list(zip(prompts, answers, strict=True))[:5]]
    refusals = sum(is_refusal(answer, phrases) for answer in answers)
    return RefusalCount(refusals, len(prompts), sum(not answer for answer in answers), examples)
