"""Whether two lists of prompts share one: what is fitted, scored and tested on must not be the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from securetune.data.prompt_rows import Prompt

_SHOWN_CHARACTERS = 80


def find_overlap(first: Iterable[Prompt], second: Iterable[Prompt]) -> list[tuple[Prompt, Prompt]]:
    """Return the pairs of prompts, one of each list, that ask for the same (see `Prompt.request_words`)."""
    known = {prompt.request_words: prompt for prompt in first}
    return [(known[prompt.request_words], prompt) for prompt in second if prompt.request_words in known]


def overlap_sentence(
    first_name: str, first: Collection[Prompt], second_name: str, second: Collection[Prompt]
) -> str | None:
    """Say which prompts two lists share, or return None if they share none.

    Args:
        first_name: What the first list is called, such as `the harmful prompts (bad.txt)`.
        first: The first list.
        second_name: What the second list is called.
        second: The second list; its prompts are counted.

    Example:
        >>> from securetune.data.prompt_rows import prompt_from_text
        >>> overlap_sentence("a.txt", [prompt_from_text("a:1", "Hi!")], "b.txt", [prompt_from_text("b:7", "hi")])
        'a.txt and b.txt must not overlap; 1 of 1 do, such as "hi" (a:1 and b:7)'
    """
    pairs = find_overlap(first, second)
    if not pairs:
        return None
    known, shared = pairs[0]
    shown = " ".join(shared.text.split())[:_SHOWN_CHARACTERS]
    return (
        f"{first_name} and {second_name} must not overlap; {len(pairs)} of {len(second)} do, "
        f'such as "{shown}" ({known.id} and {shared.id})'
    )
