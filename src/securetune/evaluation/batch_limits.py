"""How many prompts are answered together: a number of rows, and what their cache may hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

BatchSize = int | Literal["auto"]

ROWS_ON_CPU = 128
"""Most rows on a CPU. 192 mixed prompts to a model of 6 layers and width 64 took one core 3.2 s in batches of 64 rows,
and 2.8 s in batches of 96 and of 128; where the memory does not hold their cache, there are fewer."""

ROWS_ON_GPU = 256
"""Most rows on a GPU: beyond, a step takes longer in proportion."""

_SHARE_OF_FREE_MEMORY = 0.5
"""Share of the free memory that the cache may fill. The rest is for the prompts' activations and for the copy of the
cache's largest part while a step makes it longer; if it is not enough, the batch is halved."""


@dataclass(frozen=True)
class BatchLimit:
    """How large a batch may be.

    Attributes:
        rows: Most rows.
        tokens: Most tokens in the cache, padding included: rows times the longest prompt with its longest answer. None:
            the rows alone count.
    """

    rows: int
    tokens: int | None = None

    def rows_of(self, width: int) -> int:
        """Return how many rows of so many tokens fit; one always does, since nothing smaller can be tried."""
        return self.rows if self.tokens is None else max(1, min(self.rows, self.tokens // width))

    def halved(self, rows: int) -> BatchLimit:
        """Return the limit after so many rows were too many."""
        return BatchLimit(max(1, rows // 2), self.tokens)


def batch_limit(network: PreTrainedModel, batch_size: BatchSize) -> BatchLimit:
    """Turn the setting into a limit; `auto` takes what the memory that is free now holds."""
    if batch_size != "auto":
        return BatchLimit(batch_size)
    rows = ROWS_ON_GPU if network.device.type == "cuda" else ROWS_ON_CPU
    free = _free_bytes(network.device)
    return BatchLimit(rows, None if free is None else int(free * _SHARE_OF_FREE_MEMORY) // bytes_per_token(network))


def bytes_per_token(network: PreTrainedModel) -> int:
    """Estimate what a token takes: its keys and values in every layer, and its activations in one."""
    config: Any = network.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 1
    hidden = config.hidden_size
    head = getattr(config, "head_dim", None) or hidden // heads
    cached = 2 * (getattr(config, "num_key_value_heads", None) or heads) * head * config.num_hidden_layers
    active = 4 * hidden + 3 * (getattr(config, "intermediate_size", None) or 4 * hidden)
    return int(cached + active) * network.dtype.itemsize


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not told by every system; the rows alone count then
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether memory ran out, on a GPU or on the CPU, whose allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
