"""GuardSpace and SaLoRA: their formulas, how their adapters begin, and what these can and cannot learn."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import EXPERTS, FUSED, make_architecture
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from plain_step import ROWS as TOKENS
from plain_step import PlainStep
from tiny_models import make_tiny_network, make_tiny_tokenizer, tiny_prompts
from torch import Tensor, nn

from securetune.config import ModelSettings, TrainingSettings
from securetune.defenses import DefenseContext, ParameterSets, find_defense
from securetune.defenses.adapted_weights import adapted_weights
from securetune.defenses.confined_adapters import ConfinedAdapters
from securetune.defenses.guardspace import least_relevant_part
from securetune.defenses.guardspace.null_space import used_directions
from securetune.defenses.salora import output_directions, task_part
from securetune.defenses.salora.safety_module import some_rows
from securetune.errors import ConfigError
from securetune.models import map_modules

TOKENIZER = make_tiny_tokenizer()
ROWS = [{"input_ids": row} for row in TOKENS]
IDS = torch.tensor(TOKENS)
METHODS = ("guardspace", "salora")
MODELS = ("llama", *FUSED)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("requests") / "harmful.txt"
    path.write_text("\n".join(prompt.text for prompt in tiny_prompts("harmful", 0, 8)))
    return str(path)


def make_network(kind: str = "llama") -> Any:
    size = len(TOKENIZER)
    return make_tiny_network(size) if kind == "llama" else make_architecture(*FUSED[kind], vocab_size=size)


def with_adapters(model: Any, **changes: Any) -> PeftModel:
    """Put adapters on every projection of a model."""
    torch.manual_seed(0)
    modules = map_modules(model)
    config = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": sorted({module.path for module in modules}),
        "fan_in_fan_out": modules[0].part.transposed,
        **changes,
    }
    wrapped = get_peft_model(model, LoraConfig(**config))
    assert isinstance(wrapped, PeftModel)
    return wrapped


def context_of(model: nn.Module, **changes: Any) -> DefenseContext:
    names = tuple(name for name, weight in model.named_parameters() if weight.requires_grad)
    sets = ParameterSets((), names)
    given = {"modules": map_modules(model), "tokenizer": TOKENIZER, "rows": ROWS, **changes}
    return DefenseContext(TrainingSettings(tune="lora"), 1e-2, 4, sets, **given)


def make_defense(method: str, requests: str, **changes: Any) -> ConfinedAdapters:
    own = {
        "guardspace": {"null_tolerance": 1e-2},
        "salora": {"safety_rank": 5, "task_rank": 8, "task_rows": 3},
    }
    options = {"prompts": requests, "max_new_tokens": 4, **own[method], **changes}
    found = find_defense(method, options)
    assert isinstance(found, ConfinedAdapters)
    return found


def begun(method: str, requests: str, kind: str = "llama", **changes: Any) -> tuple[ConfinedAdapters, PeftModel]:
    """Return a method and a model with adapters as they are before the first step."""
    model = with_adapters(make_network(kind))
    defense = make_defense(method, requests, **changes)
    defense.before_training(model, context_of(model))
    return defense, model


def loss_of(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def train(defense: ConfinedAdapters, model: PeftModel, steps: int = 3) -> None:
    """Take steps as a trainer does: gradients, the method, clipping, the optimizer, the method."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        defense.adjust_gradients(PlainStep(model))
        torch.nn.utils.clip_grad_norm_(weights, 0.05)
        optimizer.step()
        defense.after_step(model, optimizer)


def updates(defense: ConfinedAdapters, model: PeftModel) -> dict[str, Tensor]:
    """Return by path what each adapter adds to its weight."""
    found = {}
    for each in defense._weights:
        down, up = each.factors_in(model)
        found[each.path] = each.scale * (up @ down).detach().double()
    return found


# ----------------------------------------------------------------------------------------------- formulas


def inputs_and_weight() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    inputs = torch.randn(9, 40, dtype=torch.float64) * torch.linspace(2, 0.05, 9, dtype=torch.float64)[:, None]
    return inputs, torch.randn(7, 9, dtype=torch.float64)


def test_the_least_relevant_part_is_the_papers() -> None:
    """It is the last terms of the SVD of W·C, times C's inverse; all terms together are W, however C is scaled."""
    inputs, weight = inputs_and_weight()
    moment = inputs @ inputs.T
    variance = float(moment.trace()) / 9
    damped = moment + 0.01 * variance * torch.eye(9, dtype=torch.float64)
    left, sizes, right = torch.linalg.svd(weight @ damped, full_matrices=False)
    terms = [sizes[i] * torch.outer(left[:, i], right[i]) @ torch.linalg.inv(damped) for i in range(7)]
    for scale in (1.0, 2.5):
        start = least_relevant_part(weight, moment.float(), 3, scale)
        torch.testing.assert_close(scale * start.up @ start.down, sum(terms[4:]), rtol=1e-4, atol=1e-6)
    whole = least_relevant_part(weight, 1000 * moment, 7, 1.0)
    torch.testing.assert_close(whole.up @ whole.down, weight)
    same = least_relevant_part(weight, moment, 7, 1.0)
    torch.testing.assert_close(whole.up.abs(), same.up.abs())
    # What is left out changes the outputs on these inputs the least.
    errors = [float((term @ damped).norm()) for term in terms]
    assert errors == sorted(errors, reverse=True)


def test_the_null_space_is_where_the_inputs_are_not() -> None:
    """The used directions hold every eigenvalue above the bound, and the inputs have nothing outside them."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64))[0]
    sizes = torch.tensor([5.0, 3.0, 1.0, 1e-2, *[0.0] * 6], dtype=torch.float64)
    moment = basis @ sizes.diag() @ basis.T
    assert [used_directions(moment, bound).shape[1] for bound in (0.0001, 0.1, 0.5, 1.0)] == [4, 3, 2, 0]
    used = used_directions(moment, 1e-6)
    torch.testing.assert_close(used.T @ used, torch.eye(4, dtype=torch.float64))
    assert float((moment - used @ used.T @ moment).norm()) < 1e-12


def test_the_safety_module_and_the_start_are_the_papers() -> None:
    """They equal what the singular vectors of the outputs themselves, and of the weight, give."""
    inputs, weight = inputs_and_weight()
    of_outputs = torch.linalg.svd(weight @ inputs)[0]
    found = output_directions(weight, inputs @ inputs.T, 3)
    torch.testing.assert_close(found @ found.T, of_outputs[:, :3] @ of_outputs[:, :3].T)
    assert output_directions(weight, torch.outer(inputs[:, 0], inputs[:, 0]), 3).shape == (
        7,
        1,
    )
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    start = task_part(weight, found, 2, 2.5)
    expected = found @ found.T @ left[:, :2] @ sizes[:2].diag() @ right[:2]
    torch.testing.assert_close(2.5 * start.up @ start.down, expected)


# ------------------------------------------------------------------------------------------ how they begin


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_what_it_was_when_training_begins(method: str, kind: str, requests: str) -> None:
    """Adapters begin with parts of the weights, the frozen part is what is left, and outputs are the start model's."""
    start = make_network(kind)
    defense, model = begun(method, requests, kind)
    for name, weight in start.named_parameters():
        matching = [w for n, w in model.named_parameters() if n.replace(".base_layer", "").endswith(f"model.{name}")]
        assert torch.equal(matching[0], weight), name  # the weights themselves are not touched
    for each in defense._weights:
        down, up = each.factors_in(model)
        assert (each.rank, down.shape[0], up.shape[1]) == (3, 6, 6)
        assert torch.equal(down[:3], down[3:])
        assert torch.equal(up[:, :3], -up[:, 3:])
        assert float((up[:, :3] @ down[:3]).detach().norm()) > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IDS).logits, start(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_adapters_begin_with_is_a_part_of_the_weights(method: str, requests: str) -> None:
    """SaLoRA takes C_S of the weight's first components, limited to the task's outputs; GuardSpace others, times P."""
    defense, model = begun(method, requests)
    plain = make_network()
    weights = {module.path: module.weight_in(plain).detach().double() for module in map_modules(plain)}
    for each in defense._weights:
        down, up = each.factors_in(model)
        begins = each.scale * (up[:, :3] @ down[:3]).detach().double()
        held = defense.directions[each.path].double()
        weight = weights[each.path]
        if method == "guardspace":
            assert float((begins @ held).norm()) < 1e-5 * float(begins.norm())
        else:
            assert float((held.T @ begins).norm()) < 1e-5 * float(begins.norm())
            right = torch.linalg.svd(weight)[2][:3]
            torch.testing.assert_close(begins @ right.T @ right, begins, rtol=1e-4, atol=1e-5)
        assert torch.linalg.matrix_rank(begins, rtol=1e-4) <= 3


@pytest.mark.parametrize(
    ("changes", "factor"), [({}, 2.0), ({"use_rslora": True}, 2**0.5), ({"rank_pattern": {"q_proj": 2}}, 2.0)]
)
def test_the_saved_adapter_is_for_the_start_model(
    changes: dict[str, Any], factor: float, requests: str, tmp_path: Path
) -> None:
    """Its configuration tells the doubled rank at the same scale, also by pattern; loaded, it gives the same."""
    model = with_adapters(make_network(), **changes)
    defense = make_defense("salora", requests)
    defense.before_training(model, context_of(model))
    train(defense, model, steps=1)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(make_network(), str(tmp_path)).eval()
    config = again.peft_config["default"]
    assert (config.r, config.lora_alpha) == (6, pytest.approx(6 * factor))
    with torch.no_grad():
        expected = model.eval()(IDS).logits
        torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again.merge_and_unload()(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_rows_to_begin_with_are_a_draw() -> None:
    """The same at every call and from all of the data; of a stream the first; packed rows are taken apart."""
    rows = [{"input_ids": [place]} for place in range(100)]
    found = some_rows(rows, 10)
    assert found == some_rows(rows, 10) == some_rows(Dataset.from_list(rows), 10)
    assert len({row[0] for row in found}) == 10
    assert max(row[0] for row in found) > 50
    assert some_rows(IterableDataset.from_generator(lambda: iter(rows)), 2) == [[0], [1]]
    packed = [{"input_ids": [1, 2, 3, 4, 5], "seq_lengths": [2, 3]}]
    assert some_rows(packed, 10) == [[1, 2], [3, 4, 5]]
    assert some_rows(rows, 0) == []


# ------------------------------------------------------------------------------------------ what they learn


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_protected_passes_through_as_before(method: str, kind: str, requests: str) -> None:
    """After steps with weight decay W has moved, but not on the harmful inputs, or not in the harmful outputs."""
    defense, model = begun(method, requests, kind)
    frozen = {each.path: [part.clone() for part in halves(each, model)] for each in defense._weights}
    train(defense, model)
    moved = 0
    for each in defense._weights:
        update, held = updates(defense, model)[each.path], defense.directions[each.path].double()
        assert 0 < held.shape[1] <= held.shape[0]
        kept = update @ held if method == "guardspace" else held.T @ update
        assert float(kept.norm()) < 1e-5 * max(1.0, float(update.norm()))
        moved += float(update.norm()) > 1e-4
        for part, before in zip(halves(each, model), frozen[each.path], strict=True):
            assert torch.equal(part, before)
    assert moved > 4


def halves(each: Any, model: PeftModel) -> tuple[Tensor, Tensor]:
    """Return the frozen halves of A and B."""
    down, up = each.factors_in(model)
    return down[each.rank :].detach(), up[:, each.rank :].detach()


class ThreeFactors(nn.Module):
    """A projection as the papers write it: frozen rest, and an adapter with a fixed third factor."""

    def __init__(self, weight: Tensor, scale: float, down: Tensor, up: Tensor, projector: Tensor, side: str) -> None:
        super().__init__()
        self.scale, self.projector, self.side = scale, projector, side
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())
        self.rest = weight - self.update().detach()

    def update(self) -> Tensor:
        product = self.up @ self.down
        return self.scale * (product @ self.projector if self.side == "inputs" else self.projector @ product)

    def forward(self, given: Tensor) -> Tensor:
        return given @ (self.rest + self.update()).T


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_training_with_a_fixed_third_factor(method: str, requests: str) -> None:
    """AdamW with weight decay and clipping ends with the updates that it has with the papers' B·A·P, or C·B·A."""
    defense, model = begun(method, requests)
    reference = make_network().requires_grad_(False)
    papers = {}
    for each in defense._weights:
        down, up = (part.detach() for part in each.factors_in(model))
        held = defense.directions[each.path]
        projector = torch.eye(held.shape[0]) - held @ held.T
        weight = reference.get_submodule(each.path).weight
        papers[each.path] = ThreeFactors(weight, each.scale, down[:3], up[:, :3], projector, defense.side)
        parent, _, name = each.path.rpartition(".")
        setattr(reference.get_submodule(parent), name, papers[each.path])
    starts = {path: layer.update().detach() for path, layer in papers.items()}
    weights = [weight for weight in reference.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(reference).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.05)
        optimizer.step()
    train(defense, model)
    for path, update in updates(defense, model).items():
        expected = (papers[path].update() - starts[path]).detach().double()
        assert float((update - expected).norm()) <= 2e-3 * float(expected.norm()) + 1e-6, path


@pytest.mark.parametrize(
    ("method", "changes"),
    [("guardspace", {"initialize": False, "null_tolerance": 1}), ("salora", {"safety_rank": 0, "task_rows": 0})],
)
def test_without_strength_nothing_is_looked_at(method: str, changes: dict[str, Any], requests: str) -> None:
    """Adapters stay as PEFT made them, no prompt counts as used, and a quantized model is no reason to refuse."""
    model = with_adapters(make_network())
    before = deepcopy(model.state_dict())
    defense = make_defense(method, requests, **changes)
    defense.before_training(model, context_of(model, tokenizer=None, rows=()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert defense.prompts_used("some/model") == []
    assert (defense.notes(), defense.evidence()) == ([], {})


@pytest.mark.parametrize("method", METHODS)
def test_the_requests_are_told(method: str, requests: str) -> None:
    """The prompts that a method looks at are those of its file, so that a run can refuse suites that share one."""
    texts = {prompt.text for prompt in make_defense(method, requests).prompts_used("some/model")}
    assert texts == {prompt.text for prompt in tiny_prompts("harmful", 0, 8)}


def test_the_parts_are_apart(requests: str) -> None:
    """Without the start, both confine adapters that begin as LoRA's, at the same rank."""
    for method, changes in (("guardspace", {"initialize": False}), ("salora", {"task_rows": 0})):
        defense, model = begun(method, requests, **changes)
        assert defense.notes() == []
        assert all(each.factors_in(model)[0].shape[0] == 3 for each in defense._weights)
        assert not any(bool(update.any()) for update in updates(defense, model).values())
        train(defense, model)
        for path, update in updates(defense, model).items():
            held = defense.directions[path].double()
            kept = update @ held if method == "guardspace" else held.T @ update
            assert float(kept.norm()) < 1e-5 < float(update.norm())


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "works with LoRA, not with DoRA"),
        ({"lora_bias": True, "bias": "none", "target_modules": ["c_attn"]}, "while adapters have a bias"),
        ({"bias": "lora_only", "target_modules": ["c_attn"]}, "cannot hold outputs while biases train"),
        ({"init_lora_weights": False}, "adapters that have learned nothing"),
        ({"target_modules": ["wte", "c_attn"]}, "works on adapters of projections alone"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_other_adapters_are_refused(method: str, changes: dict[str, Any], sentence: str, requests: str) -> None:
    """One sentence says so before a single answer is generated."""
    model = with_adapters(make_network("gpt2"), **changes)
    model.generate = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=f"^{method} .*{sentence}"):
        make_defense(method, requests).before_training(model, context_of(model))


@pytest.mark.parametrize("method", METHODS)
def test_other_models_are_refused(method: str, requests: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full tuning, stacked experts and a quantized model are refused, each in one sentence."""
    defense = make_defense(method, requests)
    plain = make_network()
    with pytest.raises(ConfigError, match="works on adapters, and the model has none"):
        defense.before_training(plain, context_of(plain))
    experts = make_architecture(*next(iter(EXPERTS.values())), vocab_size=len(TOKENIZER))
    stacked = [module.path for module in map_modules(experts) if module.of_experts]
    adapted = with_adapters(experts, target_modules=["q_proj"], target_parameters=stacked)
    with pytest.raises(ConfigError, match="cannot work on stacked experts"):
        defense.before_training(adapted, context_of(adapted))
    monkeypatch.setattr("securetune.defenses.confined_adapters.is_quantized", lambda _: True)
    with pytest.raises(ConfigError, match=f"{method} decomposes weights, and those of a quantized model are packed"):
        defense.check(ModelSettings(name="some/model"))


@pytest.mark.parametrize(
    ("method", "changes", "more", "sentence"),
    [
        ("guardspace", {"null_tolerance": 0}, {}, r"null_tolerance 0 leaves no direction free"),
        ("guardspace", {}, {"tokenizer": None}, "guardspace needs the model's tokenizer"),
        ("salora", {"safety_rank": 16}, {}, r"safety_rank must be below 16, the outputs of .*k_proj; got 16"),
        ("salora", {}, {"rows": ()}, "there are no training rows to begin with"),
    ],
)
def test_what_leaves_nothing_to_learn_is_told(
    method: str, changes: dict[str, Any], more: dict[str, Any], sentence: str, requests: str
) -> None:
    """A setting that leaves an adapter nothing to learn, or nothing to begin with, is named with what it should be."""
    model = with_adapters(make_network())
    own = {"max_new_tokens": 16, **changes} if method == "guardspace" else changes
    with pytest.raises(ConfigError, match=sentence):
        make_defense(method, requests, **own).before_training(model, context_of(model, **more))


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_needs_as_many_components_as_its_rank(method: str, requests: str) -> None:
    """An adapter of a higher rank than its weight has components cannot begin with them."""
    model = with_adapters(make_network(), r=17)
    with pytest.raises(ConfigError, match=r"lora.rank must be at most 16, the components of .*; got 17"):
        make_defense(method, requests).before_training(model, context_of(model))


def test_every_adapter_is_found(requests: str) -> None:
    """Fused projections share one adapter, and each is listed once with its rank and scale."""
    model = with_adapters(make_network("phi3") if "phi3" in FUSED else make_network())
    found = adapted_weights(model, context_of(model), "salora")
    assert len(found) == len({each.path for each in found}) == sum(".lora_A." in n for n, _ in model.named_parameters())
    assert {(each.rank, each.scale) for each in found} == {(3, 2.0)}
