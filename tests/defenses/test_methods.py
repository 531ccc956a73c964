"""What each method asks of the trainer."""

import pytest
import torch

from securetune.config import TrainingSettings
from securetune.defenses import DefenseContext, ParameterSets, Phase, find_defense, list_defenses

METHODS = [description.name for description in list_defenses() if description.stage == "training"]
REQUIRED = {"asft": {"base": "tiny-world-base"}}
SETS = ParameterSets(robust=("a", "b"), rest=("c", "d", "e"))


def phases_of(method: str, main_steps: int = 100, **settings: object) -> list[Phase]:
    resolved = TrainingSettings(method=method, **settings)
    context = DefenseContext(resolved, learning_rate=1e-3, main_steps=main_steps, parameters=SETS)
    return find_defense(method, REQUIRED.get(method)).phases(context)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_with_the_full_main_phase(method: str) -> None:
    """Whatever comes before, the last phase is called main, has all its steps, and sees the data in IFT's order."""
    last = phases_of(method)[-1]
    assert (last.name, last.steps, last.seed_offset) == ("main", 100, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, {"warmup_phase_steps": 0}, {"warmup_phase_steps": 7}], ids=str)
def test_the_steps_are_known_before_the_phases(method: str, settings: dict) -> None:
    """What a method says of its phases' steps before weights are loaded is what its phases then have."""
    for main_steps in (1, 5, 100):
        found = find_defense(method, REQUIRED.get(method)).phase_steps(
            main_steps, TrainingSettings(method=method, **settings)
        )
        assert list(found.items()) == [(phase.name, phase.steps) for phase in phases_of(method, main_steps, **settings)]


@pytest.mark.parametrize("method", METHODS)
def test_a_defense_does_nothing_at_other_moments(method: str) -> None:
    """The in-training methods leave the data, the loss and the prompts as they are."""
    defense = find_defense(method, REQUIRED.get(method))
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]
    loss = torch.tensor(1.5)
    assert defense.prepare_data(rows, TrainingSettings()) is rows
    assert defense.adjust_loss(loss, torch.nn.Identity(), {}) is loss
    assert defense.prepare_messages(rows[0]["messages"]) is rows[0]["messages"]


def test_ift_trains_everything_at_one_rate() -> None:
    """IFT is one phase with one group of all parameters."""
    (phase,) = phases_of("ift")
    (group,) = phase.groups
    assert set(group.parameter_names) == {"a", "b", "c", "d", "e"}
    assert group.learning_rate == 1e-3


def test_ml_lr_slows_the_rest() -> None:
    """ML-LR trains Mods_Rob at the base rate and the rest at the ratio times it, never the other way round."""
    (phase,) = phases_of("ml-lr", learning_rate_ratio=0.25)
    rates = {group.parameter_names: group.learning_rate for group in phase.groups}
    assert rates == {SETS.robust: 1e-3, SETS.rest: 2.5e-4}


def test_ml_lr_ratio_zero_freezes() -> None:
    """A ratio of 0 leaves the rest out of every group, so that it has no optimizer state."""
    (phase,) = phases_of("ml-lr", learning_rate_ratio=0.0)
    assert [group.parameter_names for group in phase.groups] == [SETS.robust]


def test_swat_warms_up_robust_modules_only() -> None:
    """SWAT's first phase trains Mods_Rob alone, in another order of the data, at its own rate."""
    warmup, main = phases_of("swat", warmup_phase_steps=40, warmup_phase_learning_rate=2e-3)
    assert (warmup.name, warmup.steps) == ("warmup", 40)
    assert [(group.parameter_names, group.learning_rate) for group in warmup.groups] == [(SETS.robust, 2e-3)]
    assert warmup.seed_offset != main.seed_offset
    assert [main] == phases_of("ift")


@pytest.mark.parametrize(("main_steps", "expected"), [(100, 50), (5, 2), (1, 1)])
def test_swat_default_warm_up(main_steps: int, expected: int) -> None:
    """Unset, the warm-up has half the steps of the main phase, at least one, at the base rate."""
    warmup, _ = phases_of("swat", main_steps)
    assert (warmup.steps, warmup.groups[0].learning_rate) == (expected, 1e-3)


def test_swat_without_warm_up_is_ift() -> None:
    """No warm-up steps: the phases of SWAT are those of IFT."""
    assert phases_of("swat", warmup_phase_steps=0) == phases_of("ift")
