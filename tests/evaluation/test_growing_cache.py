"""The cache whose rows come and go in place holds what one that is cut and joined anew would."""

import random
from collections.abc import Sequence

import pytest
import torch
from conftest import make_tiny_network
from torch import Tensor

from securetune.evaluation import growing_cache as module
from securetune.evaluation.growing_cache import GrowingLayer, growing_cache, moves_to_close


def states(rows: int, tokens: int, seed: int, values: int = 3) -> Tensor:
    return torch.randn(rows, 2, tokens, values, generator=torch.Generator().manual_seed(seed))


def layer_of(keys: Tensor) -> GrowingLayer:
    layer = GrowingLayer()
    layer.update(keys, keys[..., :2])  # values may be narrower than keys
    return layer


def order_after(leaving: Sequence[bool]) -> list[int]:
    """Return the rows that stay, in their new order."""
    order = list(range(len(leaving)))
    moves = moves_to_close(list(leaving), torch.device("cpu"))
    for target, source in zip(moves.targets.tolist(), moves.sources.tolist(), strict=True):
        order[target] = source
    return order[: moves.staying]


def widened(rows: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, width - rows.shape[2], 0))


@pytest.mark.parametrize("seed", range(8))
def test_any_coming_and_going_is_a_cut_and_a_join(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any tokens, departures and arrivals the layer holds the plain cuts and joins of the same rows."""
    monkeypatch.setattr(module, "SPARE_COLUMNS", 3)  # so that memory runs out often
    draw = random.Random(seed)
    expected = states(4, 5, seed=0)
    layer = layer_of(expected)
    lengths = [5] * 4  # of each row; what is left of it is hidden by the mask
    for turn in range(1, 60):
        act = draw.choice(["grow", "grow", "leave", "join"])
        if act == "grow":
            new = states(len(lengths), 1, seed=turn)
            layer.update(new, new[..., :2])
            expected = torch.cat([expected, new], dim=2)
            lengths = [length + 1 for length in lengths]
        elif act == "leave" and len(lengths) > 1:
            leaving = [draw.random() < 0.3 for _ in lengths]
            leaving[draw.randrange(len(lengths))] = False
            order = order_after(leaving)
            lengths = [lengths[place] for place in order]
            unused = expected.shape[2] - max(lengths)
            layer.keep(moves_to_close(leaving, torch.device("cpu")), unused)
            expected = expected[order, :, unused:]
        elif act == "join" and len(lengths) < 9:
            arriving = states(draw.randint(1, 3), draw.randint(1, 12), seed=100 + turn)
            layer.join(layer_of(arriving))
            width = max(expected.shape[2], arriving.shape[2])
            expected = torch.cat([widened(expected, width), widened(arriving, width)])
            lengths += [arriving.shape[2]] * len(arriving)
        assert layer.keys.shape == expected.shape
        for row, length in enumerate(lengths):
            assert torch.equal(layer.keys[row, :, -length:], expected[row, :, -length:])
            assert torch.equal(layer.values[row, :, -length:], expected[row, :, -length:, :2])


def test_what_a_row_left_behind_is_not_read_as_a_number() -> None:
    """A row whose numbers overflowed leaves nothing in the place that the next row takes, not even behind its mask."""
    layer = layer_of(torch.cat([states(1, 6, seed=0), torch.full((1, 2, 6, 3), torch.nan)]))
    layer.keep(moves_to_close([False, True], torch.device("cpu")), unused=2)
    layer.join(layer_of(states(1, 3, seed=1)))  # shorter than the row beside it
    assert layer.keys.shape == (2, 2, 4, 3)
    assert torch.equal(layer.keys[1, :, 0], torch.zeros(2, 3))
    layer.join(layer_of(states(1, 6, seed=2)))  # longer: both rows are widened again
    assert layer.keys.shape == (3, 2, 6, 3)
    assert not layer.keys.isnan().any()
    assert torch.equal(layer.keys[1, :, :3], torch.zeros(2, 3, 3))


def test_most_tokens_are_put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is taken anew once in as many tokens as there are spare columns, not at each."""
    taken: list[int] = []
    copy = module._Block._copy
    monkeypatch.setattr(module._Block, "_copy", lambda block, *sizes: (taken.append(1), copy(block, *sizes))[1])
    layer = layer_of(states(2, 4, seed=0))
    for turn in range(64):
        new = states(2, 1, seed=turn)
        layer.update(new, new[..., :2])
    assert layer.get_seq_length() == 68
    assert len(taken) == 2 * 2  # keys and values, twice each


def test_a_network_reads_it_as_its_own_cache() -> None:
    """The logits behind it are those without any cache."""
    network = make_tiny_network(40)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    cache = growing_cache(network.config)
    with torch.no_grad():
        network(ids[:, :3], past_key_values=cache)
        found = network(ids[:, 3:], past_key_values=cache).logits[0, -1]
        assert torch.allclose(found, network(ids).logits[0, -1], atol=1e-5)
