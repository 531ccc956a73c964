"""Whether the time to read a text grows with its length alone.

Compared are one long text and the same text read in pieces, in the same process: a slow or busy machine slows both.
"""

import time
from collections.abc import Callable

PARTS = 20
"""Into so many pieces the text is cut. What backtracks over the whole text takes about so many times as long."""

ALLOWED = 5
"""Times as long as the pieces; far from both 1 and `PARTS`, because clocks are noisy."""

TRIES = 4
"""Whatever else a machine does makes a reading slower, never faster: one that is quick enough is enough."""


def times_as_long_as_in_pieces(read: Callable[[str], object], piece: str, characters: int = 100_000) -> float:
    """Return how many times as long the whole text takes as its pieces one after another; the least of some tries.

    Args:
        read: What is tried.
        piece: What the text repeats.
        characters: Length of the whole text.
    """
    whole = (piece * characters)[:characters]
    part = whole[: characters // PARTS]
    read(part)  # whatever is built once is built now
    least = float("inf")
    for _ in range(TRIES):
        began = time.process_time()
        for _ in range(PARTS):
            read(part)
        between = time.process_time()
        read(whole)
        ended = time.process_time()
        least = min(least, (ended - between) / max(between - began, 0.01))  # less than a hundredth is clock noise
        if least < ALLOWED:
            break
    return least
