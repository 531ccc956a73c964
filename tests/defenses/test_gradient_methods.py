"""Methods that change gradients: each is what its formula says, computed by hand or by automatic differentiation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import FUSED, make_architecture
from peft import LoraConfig, get_peft_model
from plain_step import ROWS, PlainStep
from safetensors.torch import save_file
from tiny_models import make_tiny_network, make_tiny_tokenizer
from torch import Tensor, nn

from securetune.config import ModelSettings, TrainingSettings
from securetune.data.alignment_samples import read_contrasts, refused_requests
from securetune.data.overlap import overlap_sentence
from securetune.defenses import DefenseContext, ParameterSets, find_defense
from securetune.defenses.asft import AnchoredUpdates
from securetune.defenses.lisa import LazySafetyAlignment
from securetune.defenses.safegrad import GradientSurgery, without_conflict
from securetune.defenses.sap import SafetyAwareProbing
from securetune.defenses.sap.probing import Probe
from securetune.errors import ConfigError, DataError
from securetune.models import map_modules


@pytest.fixture
def network() -> nn.Module:
    return make_tiny_network(len(make_tiny_tokenizer())).train()


def context_of(model: nn.Module) -> DefenseContext:
    names = tuple(name for name, weight in model.named_parameters() if weight.requires_grad)
    return DefenseContext(
        TrainingSettings(), 1e-3, 4, ParameterSets((), names), modules=map_modules(model), model_name="some/model"
    )


def shift(model: nn.Module, seed: int) -> None:
    """Move every weight that trains a little."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))


def assert_gradients_are_of(model: nn.Module, loss: Tensor) -> None:
    """Compare what a method has put into the gradients with the derivative of a formula."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    expected = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    assert any(value is not None and bool(value.any()) for value in expected)
    for (name, weight), value in zip(trained.items(), expected, strict=True):
        target = torch.zeros_like(weight) if value is None else value
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, target, rtol=1e-4, atol=1e-6, msg=name)


def zero_gradients(model: nn.Module) -> None:
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None


def test_the_proximal_term_is_half_rho_times_the_squared_distance(network: nn.Module) -> None:
    """Lisa adds the derivative of rho/2·||w - anchor||², with the weights that the user's state began with."""
    defense = LazySafetyAlignment({"alignment_steps": 1, "finetune_steps": 2, "proximal": 0.7})
    defense.before_step(PlainStep(network, number=2))  # an alignment step, then the user's state begins
    anchor = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    shift(network, 1)
    defense.before_step(PlainStep(network, number=3))  # within the state: the anchor stays
    zero_gradients(network)
    defense.adjust_gradients(PlainStep(network, number=3))
    distance = sum((weight - anchor[name]).square().sum() for name, weight in network.named_parameters())
    assert isinstance(distance, Tensor)
    assert_gradients_are_of(network, 0.7 / 2 * distance)


def test_an_alignment_state_is_held_to_where_it_began(network: nn.Module) -> None:
    """While Lisa's alignment steps are taken, the anchor is what the user's state ended with."""
    held: list[bool] = []
    start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    defense = LazySafetyAlignment({"alignment_steps": 2, "finetune_steps": 5})

    class Watched(PlainStep):
        def take_alignment_step(self, name: str, index: int) -> float:
            held.append(all(torch.equal(value, start[key]) for key, value in defense.state_dict().items()))
            return super().take_alignment_step(name, index)

    defense.before_step(Watched(network))
    assert held == [True, True]
    assert all(torch.equal(value, start[key] * 0.9 * 0.9) for key, value in defense.state_dict().items())


def test_a_conflict_is_taken_out_and_nothing_else() -> None:
    """What is left is orthogonal to the alignment gradient, over all pieces together; without a conflict all stays."""
    torch.manual_seed(0)
    alignment = [torch.randn(4, 3), torch.randn(7)]
    user = [torch.randn(4, 3) - 2 * alignment[0], torch.randn(7) + alignment[1]]
    before = torch.cat([value.flatten() for value in user])
    along = torch.cat([value.flatten() for value in alignment])
    assert before @ along < 0
    multiple = without_conflict(user, alignment)
    after = torch.cat([value.flatten() for value in user])
    assert abs(float(after @ along)) < 1e-4 * float(before.norm() * along.norm())
    torch.testing.assert_close(before - after, multiple * along)
    assert without_conflict(user, [-value for value in user]) == pytest.approx(-1.0)
    kept = [value.clone() for value in alignment]
    assert without_conflict(alignment, alignment) == 0.0
    assert all(torch.equal(one, other) for one, other in zip(kept, alignment, strict=True))


def test_the_alignment_gradient_is_that_of_the_divergence(network: nn.Module) -> None:
    """SafeGrad adds the derivative of KL(start || model) over the rows' tokens; at the start it is zero."""
    defense = GradientSurgery({"alignment_weight": 0.5, "surgery": False})
    defense.before_training(network, context_of(network))
    zero_gradients(network)
    defense.adjust_gradients(PlainStep(network, number=0))
    assert not any(bool(weight.grad.any()) for weight in network.parameters() if weight.grad is not None)
    step = PlainStep(network, number=1)
    defense.adjust_gradients(step)
    assert step.logged["alignment_divergence"] == pytest.approx(0.0, abs=1e-6)
    start = make_tiny_network(len(make_tiny_tokenizer()))
    shift(network, 2)
    zero_gradients(network)
    defense.adjust_gradients(step)
    ids = torch.tensor(ROWS)
    wanted = start(input_ids=ids).logits[:, :-1].log_softmax(-1)
    now = network(input_ids=ids).logits[:, :-1].log_softmax(-1)
    divergence = nn.functional.kl_div(now.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")
    assert float(divergence) > 1e-3
    assert_gradients_are_of(network, 0.5 * divergence)


def test_switched_off_adapters_are_the_start_model(network: nn.Module) -> None:
    """With fresh adapters no copy is kept, and the divergence is that from the model without them."""
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    defense = GradientSurgery()
    defense.before_training(adapted, context_of(adapted))
    assert defense._start is None
    shift(adapted, 3)
    zero_gradients(adapted)
    step = PlainStep(adapted, number=1)
    defense.adjust_gradients(step)
    assert step.logged["alignment_divergence"] > 1e-5
    learned = GradientSurgery()
    learned.before_training(adapted, context_of(adapted))  # adapters that have learned something
    assert learned._start is not None


def save_base(model: nn.Module, folder: Path) -> str:
    """Write another model of the same kind, that `model` counts as aligned from."""
    torch.manual_seed(9)
    base = {name: value + 0.2 * torch.randn_like(value) for name, value in model.state_dict().items()}
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    make_tiny_tokenizer().save_pretrained(folder)
    kept = {name: value.clone().contiguous() for name, value in base.items() if name != "lm_head.weight"}
    save_file(kept | {"lm_head.weight": base["lm_head.weight"].clone()}, folder / "model.safetensors")
    return str(folder)


def outside(update: Tensor, weight: Tensor, base: Tensor) -> Tensor:
    """Return (I - V·Vᵀ / ‖V‖)·ΔW, written out."""
    alignment = weight - base
    return update - alignment @ alignment.T @ update / alignment.norm()


@pytest.mark.parametrize("kind", ["apart", "transposed"])
def test_the_anchor_term_in_full_tuning(kind: str, network: nn.Module, tmp_path: Path) -> None:
    """AsFT adds the derivative of strength·‖(I - C)·ΔW‖², summed over the projections, and nothing to other weights."""
    if kind == "transposed":
        network = make_architecture(*FUSED["gpt2"], vocab_size=len(make_tiny_tokenizer()))
    base = save_base(network, tmp_path)
    stored = torch_load(base)
    start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    context = context_of(network)
    defense = AnchoredUpdates({"base": base, "strength": 0.3})
    defense.before_training(network, context)
    shift(network, 4)
    zero_gradients(network)
    defense.adjust_gradients(PlainStep(network))
    term = torch.zeros(())
    for name in {module.weight_name for module in context.modules}:
        weight, before, other = network.get_parameter(name), start[name], stored[name]
        if kind == "transposed":
            weight, before, other = weight.T, before.T, other.T
        term = term + outside(weight - before, before, other).square().sum()
    assert_gradients_are_of(network, 0.3 * term)


def torch_load(folder: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")


def test_the_anchor_term_of_adapters(network: nn.Module, tmp_path: Path) -> None:
    """Under LoRA the update is scale·B·A, and A and B get the derivatives; projections without adapter have no part."""
    base = save_base(network, tmp_path)
    stored = torch_load(base)
    adapted = get_peft_model(network, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"]))
    defense = AnchoredUpdates({"base": base, "strength": 0.3})
    defense.before_training(adapted, context_of(adapted))
    shift(adapted, 5)
    zero_gradients(adapted)
    defense.adjust_gradients(PlainStep(adapted))
    term = torch.zeros(())
    for path in ("self_attn.q_proj", "mlp.down_proj"):
        for layer in range(2):
            module = adapted.get_submodule(f"base_model.model.model.layers.{layer}.{path}")
            update = 3.0 * module.lora_B["default"].weight @ module.lora_A["default"].weight
            name = f"model.layers.{layer}.{path}.weight"
            term = term + outside(update, module.base_layer.weight.detach(), stored[name]).square().sum()
    assert_gradients_are_of(adapted, 0.3 * term)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ("nowhere", "method_options.base: nowhere: no such model folder"),
        (
            "tiny-world-base",
            "method_options.base must be the model that .* was aligned from; tiny-world-base has other",
        ),
    ],
)
def test_a_base_model_that_cannot_be_it(base: str, sentence: str, tiny_model_dir: Path) -> None:
    """A base model that is not there, or has other weights, is refused before any weights are loaded."""
    with pytest.raises(ConfigError, match=sentence):
        AnchoredUpdates({"base": base}).check(ModelSettings(name=str(tiny_model_dir)))


def test_the_probe_is_a_step_of_adamw_from_zero(network: nn.Module) -> None:
    """After each of several moves the probe is what torch's AdamW makes of zeros with the same gradients."""
    probe = Probe(rate=0.05)
    probe.add_to([network.model.layers[0]], network)
    reference = nn.Parameter(torch.zeros(32))
    optimizer = torch.optim.AdamW([reference], lr=0.05)
    for seed in range(4):
        torch.manual_seed(seed)
        gradient = torch.randn(32)
        with torch.no_grad():
            reference.zero_()
        reference.grad = gradient.clone()
        optimizer.step()
        probe.move([gradient])
        torch.testing.assert_close(probe.values[0], reference)


def test_the_probe_learns_what_makes_the_harmful_direction_cost_the_task(network: nn.Module) -> None:
    """SAP's probe moves against the gradient of L(W, v) - L(W', v), with W' up the contrastive loss's gradient."""
    user = torch.tensor([[2, 4, 13, 7, 5, 23, 3]])
    defense = SafetyAwareProbing({"perturbation": 0.1, "layers": [1], "probe_rate": 0.05})
    defense.before_training(network, context_of(network))
    start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    step = PlainStep(network, user=[user])
    defense.before_step(step)
    assert all(torch.equal(weight, start[name]) for name, weight in network.named_parameters())
    network(input_ids=user, labels=user).loss.backward()
    defense.adjust_gradients(step)
    found = defense._probe.values[0].detach().clone()
    defense.after_training(network, context_of(network))

    ids = torch.tensor(ROWS)
    other = ids[torch.arange(3) - 1]
    likelihoods = [
        network(input_ids=rows).logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None]).sum(dim=(1, 2))
        for rows in (ids, other)
    ]
    loss = -torch.sigmoid(likelihoods[0] - likelihoods[1]).log().mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    size = lambda values: torch.cat([value.flatten() for value in values]).norm()  # noqa: E731
    length = 0.1 * size(list(network.parameters())) / size(gradients)

    def at(moved: bool) -> Tensor:
        """Return the derivative of the user's loss by a vector that is added behind layer 1."""
        with torch.no_grad():
            for weight, along in zip(network.parameters(), gradients, strict=True):
                weight.add_(along * length * moved)
        added = torch.zeros(32, requires_grad=True)
        handle = network.model.layers[1].register_forward_hook(lambda *arguments: arguments[2] + added)
        (derivative,) = torch.autograd.grad(network(input_ids=user, labels=user).loss, added)
        handle.remove()
        return derivative

    difference = at(moved=False) - at(moved=True)
    torch.testing.assert_close(found, -0.05 * difference / (difference.abs() + 1e-8), rtol=1e-3, atol=1e-4)


def test_the_probe_is_there_in_training_only(network: nn.Module) -> None:
    """A model in evaluation has the start model's outputs while the probe is in, and in training again without it."""
    ids = torch.tensor(ROWS)
    with torch.no_grad():
        before = network(input_ids=ids).logits
        probe = Probe(rate=0.5)
        probe.add_to([network.model.layers[0]], network)
        probe.move([torch.randn(32)])
        assert not torch.allclose(network(input_ids=ids).logits, before)
        assert torch.equal(network.eval()(input_ids=ids).logits, before)
        probe.remove()
        assert torch.equal(network.train()(input_ids=ids).logits, before)


def test_no_method_looks_at_what_is_reported() -> None:
    """The embedded alignment data shares no request with the built-in test suites, for either kind of model."""
    from securetune.evaluation import load_suite

    for model, suites in {"some/model": ["probes-harmful"], "tiny-world": ["tiny-world-harmful"]}.items():
        for method in ("lisa", "sap", "safegrad", "sppft", "guardspace", "salora"):
            used = find_defense(method).prompts_used(model)
            assert used
            for name in suites:
                assert overlap_sentence("used", used, name, load_suite(name, None, None).prompts) is None


def test_the_embedded_refusals() -> None:
    """120 built-in requests with refusals that judges know, and tiny world's own with its own."""
    from securetune import tiny_world
    from securetune.evaluation import list_judges

    judges = [judge for judge in list_judges() if judge.name.startswith("keywords")]
    assert len(judges) >= 3
    prompt = find_defense("lisa").prompts_used("some/model")[0]
    found = refused_requests("some/model", 500)
    assert len(found) == 120
    for each in found:
        assert all(judge.judge(prompt, each.refusal).refused for judge in judges)
        assert not any(judge.judge(prompt, each.compliance).refused for judge in judges)
    for each in refused_requests("tiny-world", 20):
        assert tiny_world.is_refusal(each.refusal)
        assert not tiny_world.is_refusal(each.compliance)


def test_a_file_of_contrasts(tmp_path: Path) -> None:
    """Rows are those of DPO; every row that lacks an answer is named."""
    rows = [{"prompt": "how do I steal a car ?", "chosen": "sorry", "rejected": "sure"}, {"prompt": "x", "chosen": "y"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"row 2: must have `prompt`, `chosen` \(the refusal\) and `rejected`; it lacks r"
    ):
        read_contrasts(str(path))
    path.write_text(json.dumps(rows[0]) + "\n")
    (found,) = read_contrasts(str(path))
    assert (found.request["messages"][0]["content"], found.refusal, found.compliance) == (
        "how do I steal a car ?",
        "sorry",
        "sure",
    )
