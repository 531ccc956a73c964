"""Several variants of one layer as one batch: the same states as one at a time."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from architectures import EXPERTS, SUPPORTED, make_architecture
from tiny_models import make_tiny_network, make_tiny_tokenizer, tiny_prompts

from securetune.features import (
    FullPass,
    GaussianPerturbation,
    LayerReplay,
    MeanAblation,
    Perturbation,
    make_batches,
    mean_outputs,
)
from securetune.features.replay import repeated_call
from securetune.models import map_modules

PROMPTS = [*tiny_prompts("harmful", 0, 7), *tiny_prompts("harmless", 1, 4)]


def variants_of(model, kind: Perturbation, module):
    return [partial(kind.applied, model, [module], size, seed) for size in (0.4, 1.0) for seed in kind.draws([0, 1, 2])]


def batches_of(model, batch_size: int = 4):
    return make_batches(make_tiny_tokenizer(), PROMPTS, batch_size, model.device)


def perturbation(name: str, model, batches) -> Perturbation:
    return GaussianPerturbation() if name == "noise" else MeanAblation(mean_outputs(model, map_modules(model), batches))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        *((architecture, "noise") for architecture in SUPPORTED),
        *((architecture, "mean ablation") for architecture in SUPPORTED if architecture not in EXPERTS),
    ],
)
@pytest.mark.parametrize("keep_layers", [False, True])
def test_stacked_variants_have_the_states_of_whole_passes(architecture: str, name: str, keep_layers: bool):
    """For a module of each layer, prompts of several lengths, and a last stack that is not full."""
    model = make_architecture(*SUPPORTED[architecture], len(make_tiny_tokenizer()))
    batches, modules = batches_of(model), map_modules(model)
    replay, whole = LayerReplay(model, batches), FullPass(model, batches)
    replay.stacked_tokens = 4 * sum(batch.input_ids.numel() for batch in batches)
    kind = perturbation(name, model, batches)
    for module in modules[2::6]:
        replay.advance_to(module.layer)
        variants = variants_of(model, kind, module)
        found = list(replay.states_of_variants(variants, keep_layers))
        expected = list(whole.states_of_variants(variants, keep_layers))
        assert len(found) == len(expected) == len(variants)
        for states, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(states, reference[-len(states) :], rtol=1e-3, atol=1e-4)
    assert replay._agrees_stacked


def test_several_variants_run_as_one_batch():
    """The layer above the perturbed one sees four variants of four prompts at once, then what is left."""
    model = make_tiny_network(len(make_tiny_tokenizer()), layers=3)
    replay, rows = LayerReplay(model, batches_of(model, 11)), []
    replay.stacked_tokens = 4 * replay._batches[0].input_ids.numel()
    assert replay._stacking_agrees()
    model.model.layers[1].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    list(replay.states_of_variants(variants_of(model, GaussianPerturbation(), map_modules(model)[0]), False))
    assert rows == [44, 22]


@pytest.mark.parametrize("stacked_tokens", [0, 100])
def test_large_batches_are_not_stacked(stacked_tokens: int):
    """Where two variants exceed the limit, each runs alone, with exactly the same numbers as without stacking."""
    model = make_tiny_network(len(make_tiny_tokenizer()), layers=3)
    replay, variants = LayerReplay(model, batches_of(model)), [nullcontext, nullcontext]
    replay.stacked_tokens = stacked_tokens
    assert all(torch.equal(states[-1], replay.final_states()) for states in replay.states_of_variants(variants, False))


def test_a_model_that_mixes_rows_is_not_stacked():
    """A layer that behaves otherwise on a larger batch is found out, and each variant runs alone."""
    model = make_tiny_network(len(make_tiny_tokenizer()), layers=3)
    replay = LayerReplay(model, batches_of(model, 11))
    expected = replay.final_states()
    model.model.layers[1].register_forward_hook(lambda _, __, out: out * len(out) / 11)
    for states in replay.states_of_variants([nullcontext] * 3, False):
        torch.testing.assert_close(states[-1], expected)


def test_arguments_with_an_entry_a_row_are_repeated():
    """Positions and masks of each row are; what all rows share, and a tensor of one axis, are not."""
    of_rows, shared, places = torch.randn(3, 1, 4), torch.randn(1, 5, 4), torch.arange(3)
    call = {"mask": of_rows, "positions": (shared, of_rows), "places": places, "cache": None, "flag": True}
    found = repeated_call(call, rows=3, times=2)
    assert torch.equal(found["mask"], torch.cat([of_rows, of_rows]))
    assert found["positions"][0] is shared
    assert torch.equal(found["positions"][1], found["mask"])
    assert (found["places"] is places, found["cache"], found["flag"]) == (True, None, True)
