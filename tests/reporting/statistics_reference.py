"""Textbook forms of what the package computes with scipy."""

from math import comb


def textbook_mcnemar(b: int, c: int) -> float:
    """Return McNemar's exact two-sided p: twice the smaller tail of Binomial(b + c, 1/2), at most 1."""
    total = b + c
    tail = sum(comb(total, k) for k in range(min(b, c) + 1)) / 2**total
    return min(1.0, 2 * tail)
