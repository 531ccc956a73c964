"""`protected-subspace`: its phases and rates, energies by sensitivity, and the randomised range finder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from securetune.config import TrainingSettings
from securetune.defenses import DefenseContext, ParameterSets, Phase, find_defense
from securetune.defenses.protected_subspace.energies import module_energies
from securetune.defenses.protected_subspace.input_moments import SecondMoment
from securetune.defenses.protected_subspace.range_finder import (
    EXACT_UP_TO,
    OVERSAMPLING,
    RandomisedRange,
    statistics_maker,
)
from securetune.defenses.protected_subspace.spectrum import LEAST_PULL, InputSpectrum
from securetune.errors import ArtifactError, ConfigError, DataError
from securetune.models import ProjectionModule

CPU = torch.device("cpu")
MODULES = [
    ProjectionModule(f"layers.{layer}.mlp.up_proj", "Up", layer, f"layers.{layer}.mlp.up_proj.weight", 4)
    for layer in (0, 1)
]
SETS = ParameterSets(
    robust=("layers.1.mlp.up_proj.weight",),
    rest=("layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.bias", "embed.weight"),
)


def phases_of(schedule: str, sets: ParameterSets = SETS, **changes: Any) -> list[Phase]:
    settings = TrainingSettings(method="protected-subspace", learning_rate_ratio=0.25, warmup_phase_steps=3)
    context = DefenseContext(settings, learning_rate=1.0, main_steps=10, parameters=sets, modules=MODULES)
    return find_defense("protected-subspace", {"phases": schedule, **changes}).phases(context)


def rates(phase: Phase) -> dict[str, float]:
    return {name: group.learning_rate for group in phase.groups for name in group.parameter_names}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("plain", [{"up1": 1.0, "up0": 1.0, "embed": 0.1}]),
        ("ml-lr", [{"up1": 1.0, "up0": 0.25, "embed": 0.025}]),
        ("swat", [{"up1": 1.0}, {"up1": 1.0, "up0": 1.0, "embed": 0.1}]),
    ],
)
def test_other_rate_multiplies_the_rate_of_the_schedule(schedule: str, expected: list[dict[str, float]]) -> None:
    """Embeddings train at `other_rate` times what plain tuning, ML-LR or SWAT gives them; biases are frozen."""
    names = {"layers.1.mlp.up_proj.weight": "up1", "layers.0.mlp.up_proj.weight": "up0", "embed.weight": "embed"}
    found = [{names[name]: rate for name, rate in rates(phase).items()} for phase in phases_of(schedule)]
    assert [{name: pytest.approx(rate) for name, rate in phase.items()} for phase in expected] == found


def test_embeddings_that_count_as_robust_warm_up_slowly() -> None:
    """With `other_parameters: robust` they are in the warm-up, at `other_rate` times its rate."""
    sets = ParameterSets(robust=(*SETS.robust, "embed.weight"), rest=SETS.rest[:1])
    warmup, main = phases_of("swat", sets)
    assert rates(warmup) == {"layers.1.mlp.up_proj.weight": 1.0, "embed.weight": 0.1}
    assert rates(main)["embed.weight"] == pytest.approx(0.1)
    assert [group.name for group in warmup.groups] == ["robust", "robust-others"]


@pytest.mark.parametrize("schedule", ["plain", "swat", "ml-lr"])
def test_nothing_to_do_leaves_the_schedule_as_it_is(schedule: str) -> None:
    """With energy 0 and `other_rate` 1, phases, groups, names and steps are those of the method itself."""
    settings = TrainingSettings(method="ift", learning_rate_ratio=0.25, warmup_phase_steps=3)
    context = DefenseContext(settings, learning_rate=1.0, main_steps=10, parameters=SETS, modules=MODULES)
    method = find_defense({"plain": "ift"}.get(schedule, schedule))
    own = find_defense("protected-subspace", {"phases": schedule, "energy": 0, "other_rate": 1})
    assert own.phases(context) == method.phases(context)
    assert own.phase_steps(10, settings) == method.phase_steps(10, settings)
    assert own.needs_manifest == method.needs_manifest


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("energy", [0.05, 0.5, 0.9, 0.99])
def test_energies_have_the_mean_and_the_order_that_are_asked_for(energy: float, exponent: float) -> None:
    """Whatever the sensitivities, the mean is `energy`, all lie in [0, 1), and a more sensitive module has no less."""
    sensitivities = {"a": 0.0, "b": 1e-9, "c": 0.01, "d": 0.3, "e": 0.3, "f": 2.0, "g": 40.0}
    found = module_energies(list(sensitivities), energy, sensitivities, exponent)
    values = list(found.values())
    assert sum(values) / len(values) == pytest.approx(energy, abs=1e-12)
    assert values == sorted(values)
    assert all(0 <= value < 1 for value in values)
    assert found["d"] == found["e"] < found["g"]


def test_equal_remaining_shifts() -> None:
    """With exponent 2 each module that is protected at all leaves the same shift, s·√(1 − e)."""
    sensitivities = {"a": 1.0, "b": 2.0, "c": 4.0}
    found = module_energies(["a", "b", "c"], 0.9, sensitivities, 2.0)
    assert [s * (1 - found[name]) ** 0.5 for name, s in sensitivities.items()] == pytest.approx([0.47809] * 3, abs=1e-4)


def test_without_a_difference_energies_are_the_same() -> None:
    """Equal or zero sensitivities, exponent 0, energy 0, and `uniform` give each module the same energy."""
    names = ["a", "b"]
    for sensitivities, exponent in ((None, 1.0), ({"a": 0.0, "b": 0.0}, 1.0), ({"a": 3.0, "b": 3.0}, 1.0)):
        assert module_energies(names, 0.9, sensitivities, exponent) == pytest.approx({"a": 0.9, "b": 0.9})
    assert module_energies(names, 0.9, {"a": 1.0, "b": 9.0}, 0.0) == {"a": 0.9, "b": 0.9}
    assert module_energies(names, 0.0, {"a": 1.0, "b": 9.0}, 1.0) == {"a": 0.0, "b": 0.0}


def test_a_module_without_a_sensitivity_is_told() -> None:
    """The message names one, how many there are, and what to do."""
    with pytest.raises(ArtifactError, match=r"none for 1 of 2, such as b\. Search again .* energy_by: uniform"):
        module_energies(["a", "b"], 0.9, {"a": 1.0}, 1.0)


def decaying_tokens(width: int = 96, tokens: int = 400) -> torch.Tensor:
    """Return tokens whose second moment has eigenvalues that fall by a tenth each, in random directions."""
    generator = torch.Generator().manual_seed(3)
    turned = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    scales = 0.9 ** torch.arange(width)
    return (torch.randn(tokens, width, generator=generator) * scales) @ turned.T


def sketched(tokens: torch.Tensor, size: int, seed: int = 0) -> Any:
    statistics = statistics_maker("randomised", size, seed)(tokens.shape[1], CPU)
    for batch in tokens.split(50):
        statistics.add(batch)
    return statistics


def test_a_sketch_finds_the_directions_of_a_decaying_spectrum() -> None:
    """It holds what it says, at least the energy, with at most a few directions more than the exact way."""
    tokens = decaying_tokens()
    moment = (tokens.T @ tokens).double()
    exact = SecondMoment(96, CPU)
    exact.add(tokens)
    found, reference = sketched(tokens, 40).spectrum(), exact.spectrum()
    assert found.finder == "randomised"
    assert found.trace == pytest.approx(float(moment.trace()), rel=1e-6)
    torch.testing.assert_close(found.values[:12], reference.values[:12], rtol=1e-3, atol=0)
    for energy in (0.5, 0.9, 0.99):
        rank, fewest = found.rank_for(energy), reference.rank_for(energy)
        directions = found.vectors[:, :rank].double()
        share = float((directions.T @ moment @ directions).trace() / moment.trace())
        assert share >= found.held(rank) - 1e-6
        assert share >= energy - 1e-6
        assert fewest <= rank <= fewest + 2
        torch.testing.assert_close(directions.T @ directions, torch.eye(rank).double(), atol=1e-5, rtol=0)
    overlap = torch.linalg.matrix_norm(found.vectors[:, :8].T @ reference.vectors[:, :8], ord=-2)
    assert float(overlap) > 0.999


def test_a_sketch_depends_on_its_seed_alone() -> None:
    """The same seed gives the same directions bit for bit, whatever else was drawn; another seed gives others."""
    tokens = decaying_tokens()
    first = sketched(tokens, 20).spectrum()
    torch.randn(17)
    second, other = sketched(tokens, 20).spectrum(), sketched(tokens, 20, seed=1).spectrum()
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(first.values, second.values)
    assert not torch.equal(first.vectors, other.vectors)


def test_a_sketch_holds_no_square() -> None:
    """It keeps 2·d·(k + p) + 1 values instead of d², and inputs of one width share the random half."""
    make = statistics_maker("auto", 64, 0)
    wide = EXACT_UP_TO + 1
    first, second = make(wide, CPU), make(wide, CPU)
    assert isinstance(first, RandomisedRange)
    assert first.sketch.shape == first.test_matrix.shape == (wide, 64 + OVERSAMPLING)
    assert first.test_matrix.data_ptr() == second.test_matrix.data_ptr()
    held = sum(value.numel() for value in vars(first).values() if isinstance(value, torch.Tensor))
    assert held == 2 * wide * (64 + OVERSAMPLING) + 1 < wide**2 / 20


@pytest.mark.parametrize(
    ("finder", "width", "size", "kind"),
    [
        ("auto", EXACT_UP_TO, 64, SecondMoment),
        ("auto", EXACT_UP_TO + 1, 2 * EXACT_UP_TO, SecondMoment),
        ("exact", EXACT_UP_TO + 1, 8, SecondMoment),
        ("randomised", 64, 8, RandomisedRange),
        ("randomised", 8 + OVERSAMPLING, 8, SecondMoment),
    ],
)
def test_which_range_finder_is_taken(finder: Any, width: int, size: int, kind: type) -> None:
    """`auto` goes by the width; a sketch that would hold as much as the whole moment is never taken."""
    assert isinstance(statistics_maker(finder, size, 0)(width, torch.device("meta")), kind)


def test_few_tokens_give_few_directions() -> None:
    """With fewer tokens than columns, or none but zeros, what is found spans them and no more."""
    tokens = decaying_tokens(tokens=5)
    found = sketched(tokens, 20).spectrum()
    assert found.rank_for(0.9999) <= 5
    assert found.held(5) == pytest.approx(1.0, abs=1e-4)
    nothing = sketched(torch.zeros(7, 96), 20).spectrum()
    assert nothing.rank_for(0.9) == 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"phases": "lisa"}, "method_options.phases must be 'plain', 'swat' or 'ml-lr'; got 'lisa'"),
        ({"energy_by": "rank"}, "method_options.energy_by must be 'uniform' or 'sensitivity'; got 'rank'"),
        ({"range_finder": "none"}, "method_options.range_finder must be 'auto', 'exact' or 'randomised'; got 'none'"),
        ({"sketch_size": 0}, "method_options.sketch_size must be greater than or equal to 1; got 0"),
        (
            {"energy_by": "sensitivity", "sensitivity_exponent": 5},
            "method_options.sensitivity_exponent must be less than or equal to 4; got 5",
        ),
        (
            {"sensitivity_exponent": 2},
            "method_options sensitivity_exponent does nothing without energy_by: sensitivity",
        ),
        ({"tail_pull": 1.5}, "method_options.tail_pull must be less than or equal to 1; got 1.5"),
        (
            {"tail_pull": 0.3, "energy": 0},
            "method_options tail_pull needs protected directions, and energy 0 gives none; set tail_pull to 0",
        ),
        ({"pull_every": 2}, "method_options pull_every does nothing without tail_pull; set it, or leave it out"),
        (
            {"subspaces": "somewhere", "prompts": "p.txt", "seed": 1},
            "method_options must name no prompts, seed beside subspaces, which are gathered already; leave it out",
        ),
    ],
)
def test_options_that_do_not_fit_are_told(given: dict[str, Any], sentence: str) -> None:
    """A value out of range, and an option that another makes idle, are one sentence each."""
    with pytest.raises(ConfigError) as caught:
        find_defense("protected-subspace", given)
    assert caught.value.problems == [sentence]


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9, 0.99])
def test_shares_fall_with_what_a_direction_holds(energy: float) -> None:
    """Whole where the energy is, then a step down to the pull and on in proportion; where nothing is felt, they end."""
    values = torch.logspace(0, -5, 40, dtype=torch.float64)
    spectrum = InputSpectrum(values, torch.eye(40), float(values.sum()), "exact")
    rank = spectrum.rank_for(energy)
    shares = spectrum.shares(energy, 0.4)
    assert bool((shares[:rank] == 1).all())
    torch.testing.assert_close(shares[rank:].double(), 0.4 * values[rank : len(shares)] / values[rank - 1])
    assert len(shares) < 40
    assert shares[-1] >= LEAST_PULL > 0.4 * values[len(shares)] / values[rank - 1]
    assert len(spectrum.shares(energy)) == rank
    assert len(spectrum.shares(energy, 0.2)) < len(shares) <= len(spectrum.shares(0.995, 0.4))


def test_shares_where_there_is_nothing_to_measure_by() -> None:
    """No energy, no input at all, and a sketch that ends in directions without energy."""
    spectrum = InputSpectrum(torch.tensor([2.0, 0.0]).double(), torch.eye(2), 10.0, "randomised")
    assert spectrum.shares(0.0, 0.5).tolist() == []
    assert spectrum.shares(0.9, 0.5).tolist() == [1.0, 1.0]
    assert spectrum._replace(values=torch.zeros(2).double(), trace=0.0).shares(0.9, 0.5).tolist() == []


def protected_prompts(**options: Any) -> list[Any]:
    return list(find_defense("protected-subspace", options).prompts_used("tiny-world"))


def test_only_requests_of_the_named_categories_are_protected() -> None:
    """All requests of these, in their order, up to `max_prompts`; the others are for the test of what was not seen."""
    everything = protected_prompts()
    some = protected_prompts(categories=["theft", "fraud"])
    of_all = [prompt for prompt in everything if prompt.metadata["category"] != "damage"]
    assert some[: len(of_all)] == of_all
    assert {prompt.metadata["category"] for prompt in some} == {"theft", "fraud"}
    assert 0 < len(of_all) < len(everything) == 256
    assert protected_prompts(categories=["theft", "fraud"], max_prompts=5) == some[:5]
    assert len(protected_prompts(max_prompts=512)) == 512, "more than the 456 of one split"


def test_a_category_that_no_request_has_is_told(tmp_path: Path) -> None:
    """With those that there are; also for a file whose requests name none."""
    with pytest.raises(DataError, match=r"among those of the requests \(damage, fraud, theft\); got arson$"):
        protected_prompts(categories=["theft", "arson"])
    (tmp_path / "bad.txt").write_text("how do I steal a cart ?\n")
    with pytest.raises(DataError, match=r"\(they name none\); got theft$"):
        protected_prompts(categories=["theft"], prompts=str(tmp_path / "bad.txt"))
