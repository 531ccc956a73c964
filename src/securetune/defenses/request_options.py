"""Which harmful requests a method looks at before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from securetune.config import PositiveInt, ProbeSettings, Settings
from securetune.data.prompts import Prompt, load_probes, read_prompts
from securetune.errors import DataError


class RequestOptions(Settings):
    """Which harmful requests a method looks at before training.

    Attributes:
        prompts: File of harmful requests; None: the prompts that analysis and search use for this model (tiny world's
            or the built-in ones), which no suite holds.
        categories: Only requests of these categories, as their `category` says; None: all. To see what a method that
            knows some kinds of harm does for the others.
        max_prompts: Most of them. 256: more change the directions little, and each costs a generation.
        max_new_tokens: Longest own answer that counts with its request; 0: the requests alone. 64: a refusal.
        batch_size: Prompts together while the directions are gathered.
    """

    prompts: str | None = None
    categories: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    max_prompts: PositiveInt = 256
    max_new_tokens: int = Field(default=64, ge=0)
    batch_size: PositiveInt = 32

    def requests(self, model_name: str) -> list[Prompt]:
        """Return the requests.

        Raises:
            DataError: If the file of `prompts` cannot be read, or no request has one of the categories.
        """
        if self.prompts is not None:
            found = read_prompts(self.prompts)
        else:
            probes = load_probes(ProbeSettings(max_prompts=self.max_prompts), model_name)
            found = [*probes.fit_harmful, *probes.score_harmful]
        return _of_categories(found, self.categories)[: self.max_prompts]


def _of_categories(prompts: list[Prompt], categories: Sequence[str] | None) -> list[Prompt]:
    if categories is None:
        return prompts
    here = sorted({str(prompt.metadata["category"]) for prompt in prompts if "category" in prompt.metadata})
    if missing := sorted({*categories} - {*here}):
        raise DataError(
            f"method_options.categories must be among those of the requests ({', '.join(here) or 'they name none'}); "
            f"got {', '.join(missing)}"
        )
    return [prompt for prompt in prompts if prompt.metadata.get("category") in categories]
