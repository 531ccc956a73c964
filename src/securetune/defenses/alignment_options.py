"""The options of methods that have alignment data of their own, and the rows that they mean."""

from __future__ import annotations

from collections.abc import Sequence

from securetune.config import PositiveInt, Settings
from securetune.data.alignment_samples import RefusedRequest, answered, read_contrasts, read_refusals, refused_requests
from securetune.data.conversations import Conversation
from securetune.data.prompts import Prompt

ALIGNMENT = "alignment"


class AlignmentOptions(Settings):
    """Where the alignment data of a method comes from.

    Attributes:
        samples: File or data set; None: the embedded ones for the model (tiny world's own, or the built-in requests of
            the categories that nothing is searched or tested with, each with a refusal).
        count: Most of the embedded ones. 120: as many as there are built-in ones.
        seed: Which of tiny world's embedded ones are drawn.
    """

    samples: str | None = None
    count: PositiveInt = 120
    seed: int = 0

    def refusals(self, model_name: str) -> list[Conversation]:
        """Return harmful requests with refusals; a file has them as training data.

        Raises:
            DataError: If the samples cannot be read.
        """
        if self.samples is not None:
            return read_refusals(self.samples)
        return [answered(each.request, each.refusal) for each in refused_requests(model_name, self.count, self.seed)]

    def contrasts(self, model_name: str) -> list[RefusedRequest]:
        """Return harmful requests with a refusal and an answer that complies; a file has them as data for DPO.

        Raises:
            DataError: If the samples cannot be read.
        """
        if self.samples is not None:
            return read_contrasts(self.samples)
        return refused_requests(model_name, self.count, self.seed)


def asked_in(conversations: Sequence[Conversation]) -> list[Prompt]:
    """Return what is asked in alignment data, as prompts, so that nobody reports on them."""
    return [Prompt(f"{ALIGNMENT}-{place}", _plain(conversation)) for place, conversation in enumerate(conversations)]


def _plain(conversation: Conversation) -> tuple[dict[str, str], ...]:
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in conversation["messages"][:-1])
