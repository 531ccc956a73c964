"""Defenses that act while training: what leaves plain tuning as it is, what stays where it was, and going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import EXPERTS, FUSED, make_architecture
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from short_training import SHORT, OptionsOf, TrainShort, make_rows
from tiny_models import make_tiny_tokenizer, tiny_prompts

from securetune import SecureSFTConfig, SecureSFTTrainer
from securetune.config import ModelSettings, TrainingSettings
from securetune.defenses import DefenseContext, ParameterSets, find_defense, list_defenses
from securetune.defenses.own_answers import own_answers
from securetune.defenses.protected_subspace import ProtectedSubspace, ProtectedSubspaceOptions
from securetune.defenses.protected_subspace.input_moments import leading_directions, second_moments
from securetune.errors import ConfigError, InputError
from securetune.models import ChatModel, load, map_modules
from securetune.training import train

SUBSPACE = {"method": "protected-subspace"}


@pytest.fixture(scope="session")
def requests(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of requests in the tiny model's words, so that few prompts are gathered from."""
    path = tmp_path_factory.mktemp("requests") / "harmful.txt"
    path.write_text("\n".join(prompt.text for prompt in tiny_prompts("harmful", 0, 8)))
    return str(path)


def options(requests: str, **changes: Any) -> dict[str, Any]:
    return {"prompts": requests, "max_new_tokens": 4, "energy": 0.7, **changes}


def weights(out: Path) -> bytes:
    (path,) = (out / "model").glob("*.safetensors")
    return path.read_bytes()


@pytest.fixture(scope="module", params=["full", "lora"])
def tune(request: pytest.FixtureRequest) -> str:
    """All parameters, or adapters with dropout, whose draws no method may shift."""
    return request.param


LORA = {"lora": {"rank": 2, "dropout": 0.25}}


@pytest.fixture(scope="module")
def plain(tune: str, train_short: TrainShort, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights after plain tuning."""
    out = tmp_path_factory.mktemp("ift") / "out"
    train_short(out, method="ift", tune=tune, **LORA)
    return weights(out)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("low-lr", {"factor": 1.0}),
        ("l2-sp", {"strength": 0.0}),
        ("protected-subspace", {"energy": 0, "other_rate": 1}),
        ("lisa", {"alignment_steps": 0, "proximal": 0}),
        ("sap", {"probe_rate": 0}),
        ("safegrad", {"alignment_weight": 0, "surgery": False}),
        ("asft", {"strength": 0}),
        ("guardspace", {"initialize": False, "null_tolerance": 1}),
        ("salora", {"safety_rank": 0, "task_rows": 0}),
    ],
)
def test_strength_0_is_plain_tuning(
    method: str,
    changes: dict[str, Any],
    tune: str,
    plain: bytes,
    options_of: OptionsOf,
    train_short: TrainShort,
    tmp_path: Path,
) -> None:
    """With nothing to do, a method leaves the weights of plain tuning, bit for bit."""
    if tune == "full" and method in ON_ADAPTERS:
        pytest.skip("it works on adapters alone")
    train_short(tmp_path / "own", method=method, method_options=options_of(method, **changes), tune=tune, **LORA)
    assert weights(tmp_path / "own") == plain


METHODS = ("low-lr", "l2-sp", "freeze-rest", "protected-subspace", "sppft", "lisa", "sap", "safegrad", "asft")
ON_ADAPTERS = ("guardspace", "salora")


def test_at_full_strength_they_do_something(
    tune: str, plain: bytes, options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """Each method ends with weights of its own."""
    found, methods = {plain}, METHODS + (ON_ADAPTERS if tune == "lora" else ())
    for method in methods:
        train_short(tmp_path / method, method=method, method_options=options_of(method), tune=tune, **LORA)
        found.add(weights(tmp_path / method))
    assert len(found) == 1 + len(methods)


def test_freezing_the_rest_is_ml_lr_with_a_ratio_of_0(train_short: TrainShort, tmp_path: Path) -> None:
    """The control and the reviewers' ablation are one."""
    train_short(tmp_path / "freeze", method="freeze-rest")
    train_short(tmp_path / "ratio", method="ml-lr", learning_rate_ratio=0.0)
    assert weights(tmp_path / "freeze") == weights(tmp_path / "ratio")


def test_a_pull_of_the_whole_distance_stays_at_the_start(
    tiny_model_dir: Path, train_short: TrainShort, tmp_path: Path
) -> None:
    """L2-SP with rate × strength of 1 or more ends each step where training began."""
    train_short(
        tmp_path / "out", method="l2-sp", method_options={"strength": 1e9}, lr_scheduler_type="constant", warmup_steps=0
    )
    start, end = load(str(tiny_model_dir)).model, load(str(tmp_path / "out" / "model")).model
    for (name, before), (_, after) in zip(start.named_parameters(), end.named_parameters(), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6, msg=name)


def gather(chat: ChatModel, requests: str, **changes: Any) -> ProtectedSubspace:
    """Return the defense after it has gathered its directions from the start model."""
    defense = ProtectedSubspace(options(requests, **changes))
    names = tuple(name for name, _ in chat.model.named_parameters())
    settings = TrainingSettings(method="protected-subspace")
    context = DefenseContext(
        settings,
        1e-3,
        4,
        ParameterSets((), names),
        modules=map_modules(chat.model),
        tokenizer=chat.tokenizer,
        model_name=chat.settings.name,
    )
    defense.before_training(chat.model, context)
    return defense


def test_no_projection_changes_on_protected_inputs(
    tiny_model_dir: Path, requests: str, train_short: TrainShort, tmp_path: Path
) -> None:
    """After training W U = W₀ U for every projection, while W has moved; outputs on those inputs are as before."""
    train_short(tmp_path / "out", **SUBSPACE, method_options=options(requests))
    start, tuned = load(str(tiny_model_dir)), load(str(tmp_path / "out" / "model"))
    defense = gather(start, requests)
    modules = map_modules(start.model)
    assert set(defense.evidence()["protected"]) == {module.name for module in modules}
    for module in modules:
        directions = defense.subspaces.directions(module)
        anchor = module.weight_in(start.model) @ directions
        assert 0 < directions.shape[1] < directions.shape[0]
        after = module.weight_in(tuned.model)
        torch.testing.assert_close(after @ directions, anchor, rtol=1e-4, atol=1e-5)
        moved = (after - module.weight_in(start.model)).norm() / after.norm()
        assert moved > 1e-3
        inside = directions @ torch.randn(directions.shape[1], 5)
        torch.testing.assert_close(after @ inside, module.weight_in(start.model) @ inside, rtol=1e-3, atol=1e-4)


def test_an_adapter_is_confined_and_merges(
    tiny_model_dir: Path, requests: str, train_short: TrainShort, tmp_path: Path
) -> None:
    """Under LoRA A U = 0 for every adapter, and the merged model gives the adapter's logits."""
    train_short(tmp_path / "out", **SUBSPACE, method_options=options(requests), tune="lora")
    adapted = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out" / "model"), dtype=torch.float32).eval()
    factors = {name: value for name, value in adapted.named_parameters() if ".lora_A." in name}
    defense = gather(load(str(tiny_model_dir)), requests)
    modules = map_modules(load(str(tiny_model_dir)).model)
    assert len(factors) == len(modules)
    for module in modules:
        directions = defense.subspaces.directions(module)
        (factor,) = [value for name, value in factors.items() if f"{module.path}.lora_A" in name]
        assert factor.norm() > 0
        assert (factor @ directions).norm() < 1e-5 * max(1.0, float(factor.norm()))
    ids = torch.tensor([[1, 5, 7, 9, 4]])
    with torch.no_grad():
        before = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    torch.testing.assert_close(merged, before, rtol=1e-4, atol=1e-4)


def test_sensitive_protects_what_is_not_robust(
    requests: str, manifest: Any, train_short: TrainShort, tmp_path: Path
) -> None:
    """With `protect: sensitive` the robust modules move freely, also in the protected directions."""
    train_short(tmp_path / "out", **SUBSPACE, method_options=options(requests, protect="sensitive"))
    tuned = load(str(tmp_path / "out" / "model"))
    start = load(manifest.model.name)
    robust = {module.name for module in manifest.modules}
    defense = gather(load(manifest.model.name), requests)
    for module in map_modules(start.model):
        directions = defense.subspaces.directions(module)
        anchor = module.weight_in(start.model) @ directions
        kept = (module.weight_in(tuned.model) @ directions - anchor).norm() < 1e-4 * anchor.norm()
        assert kept == (module.name not in robust)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("protected-subspace", {}),
        ("protected-subspace", {"method_options": {"tail_pull": 0.5}}),
        ("l2-sp", {}),
        ("lisa", {}),  # the checkpoint lies within its second state
        ("lisa", {"tune": "lora", **LORA, "gradient_accumulation_steps": 2}),
        ("sap", {}),
        ("sap", {"tune": "lora", **LORA, "gradient_accumulation_steps": 2}),
        ("safegrad", {"tune": "lora", **LORA}),
        ("asft", {}),
        ("guardspace", {"tune": "lora", **LORA, "weight_decay": 0.1}),
        ("salora", {"tune": "lora", **LORA, "gradient_accumulation_steps": 2, "packing": True}),
    ],
)
def test_an_interrupted_training_goes_on(
    method: str, more: dict[str, Any], options_of: OptionsOf, train_short: TrainShort, tmp_path: Path
) -> None:
    """Stopped after a checkpoint and started again, it ends with the weights of the uninterrupted one."""

    class StopError(Exception):
        pass

    def stop(_: str, step: int, __: int) -> None:
        if step == 5:
            raise StopError

    own = options_of(method, **more.get("method_options", {}))
    settings = {"method": method, "save_steps": 4, **more, "method_options": own}
    whole = train_short(tmp_path / "whole", **settings)
    with pytest.raises(StopError):
        train_short(tmp_path / "parts", stop, **settings)
    parts = train_short(tmp_path / "parts", **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    log = "training_log.jsonl"
    assert (tmp_path / "parts" / log).read_text() == (tmp_path / "whole" / log).read_text()
    assert parts.evidence == whole.evidence


@pytest.mark.parametrize("method", ON_ADAPTERS)
def test_full_tuning_is_refused_where_adapters_are_meant(
    method: str, options_of: OptionsOf, train_short: TrainShort, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """One sentence says so before any weights are loaded, and in a script before anything is trained."""
    sentence = f'method "{method}" works on adapters: tune must be "lora"; got "full"'
    with pytest.raises(InputError, match=sentence):
        train_short(tmp_path / "out", method=method, method_options=options_of(method), tune="full")
    assert not (tmp_path / "out").exists()
    own = options_of(method)
    config = SecureSFTConfig(str(tmp_path / "run"), method=method, method_options=own, use_cpu=True, bf16=False)
    rows = Dataset.from_list(list(make_rows()))
    with pytest.raises(ConfigError, match=f'method "{method}" works on adapters: give a peft_config'):
        SecureSFTTrainer(str(tiny_model_dir), config, train_dataset=rows)


@pytest.mark.parametrize("method", ON_ADAPTERS)
def test_a_confined_adapter_merges(method: str, options_of: OptionsOf, train_short: TrainShort, tmp_path: Path) -> None:
    """The saved adapter is a plain one of twice the rank; merged it gives its logits, and it holds what was learned.

    What it began with is not in it.
    """
    settings = {"method": method, "method_options": options_of(method), "tune": "lora", "lora": {"rank": 2}}
    found = train_short(tmp_path / "out", **settings)
    adapted = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out" / "model"), dtype=torch.float32).eval()
    assert (adapted.peft_config["default"].r, adapted.peft_config["default"].lora_alpha) == (4, 32.0)
    ids = torch.tensor([[1, 5, 7, 9, 4]])
    start = load(found.model.name)
    change = {}
    for module in map_modules(start.model):
        down, up = (adapted.get_parameter(f"base_model.model.{module.path}.lora_{x}.default.weight") for x in "AB")
        change[module.name] = float((8 * up @ down).norm() / module.weight_in(start.model).norm())
    assert found.update.modules == pytest.approx(change, rel=1e-3)
    assert any("twice the rank that trained (2)" in note for note in found.notes)
    with torch.no_grad():
        before = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert not torch.allclose(before, start.model(ids).logits, atol=1e-2)
    torch.testing.assert_close(merged, before, rtol=1e-4, atol=1e-4)


def test_the_trainer_protects_too(tiny_model_dir: Path, requests: str, tmp_path: Path) -> None:
    """`SecureSFTTrainer` with `method_options` confines the update as `train` does."""
    chat = load(str(tiny_model_dir))
    config = SecureSFTConfig(
        str(tmp_path / "run"), method="protected-subspace", method_options=options(requests), max_steps=2,
        learning_rate=1e-2, per_device_train_batch_size=4, report_to="none", use_cpu=True, bf16=False,
        activation_checkpointing=False, disable_tqdm=True, save_strategy="no", logging_steps=1.0,
    )  # fmt: skip
    trainer = SecureSFTTrainer(
        chat.model, config, train_dataset=Dataset.from_list(list(make_rows())), processing_class=chat.tokenizer
    )
    trainer.train()
    start = load(str(tiny_model_dir))
    defense = gather(start, requests)
    for module in map_modules(start.model):
        directions = defense.subspaces.directions(module)
        anchor = module.weight_in(start.model) @ directions
        torch.testing.assert_close(module.weight_in(chat.model) @ directions, anchor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", FUSED)
def test_fused_projections_are_protected(kind: str, requests: str) -> None:
    """Q, K and V in one matrix, stored either way round, keep their outputs on protected inputs."""
    tokenizer = make_tiny_tokenizer()
    model = make_architecture(*FUSED[kind], vocab_size=len(tokenizer))
    names = tuple(name for name, _ in model.named_parameters())
    defense = ProtectedSubspace(options(requests))
    sets = ParameterSets((), names)
    context = DefenseContext(TrainingSettings(), 1e-3, 4, sets, modules=map_modules(model), tokenizer=tokenizer)
    defense.before_training(model, context)
    start = {module.name: module.weight_in(model).detach().clone() for module in context.modules}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    defense.after_step(model, torch.optim.SGD(model.parameters(), lr=1.0))
    for module in context.modules:
        directions = defense.subspaces.directions(module)
        anchor = start[module.name] @ directions
        torch.testing.assert_close(module.weight_in(model) @ directions, anchor, rtol=1e-4, atol=1e-4)


def test_stacked_experts_are_refused(requests: str) -> None:
    """Experts see inputs of their own; one sentence says that they cannot be protected."""
    tokenizer = make_tiny_tokenizer()
    model = make_architecture(*next(iter(EXPERTS.values())), vocab_size=len(tokenizer))
    sets = ParameterSets((), ())
    context = DefenseContext(TrainingSettings(), 1e-3, 4, sets, modules=map_modules(model), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="cannot protect stacked experts"):
        ProtectedSubspace(options(requests)).before_training(model, context)


def test_moments_are_those_of_the_real_tokens(tiny_chat_model: ChatModel) -> None:
    """They equal the plain sum over each conversation by itself, padding or not, and are shared where the input is."""
    model = tiny_chat_model.model
    rows = [[1, 5, 7], [4, 6, 8, 9, 3, 5], [2, 9]]
    holders = {module.path: module.holder_in(model) for module in map_modules(model)}
    found = second_moments(model, holders, rows, batch_size=2)
    expected: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            tokens = inputs[0][0].double()
            expected[name] = expected.get(name, torch.zeros(())) + tokens.T @ tokens

        return hook

    handles = [holder.register_forward_pre_hook(keep(name)) for name, holder in holders.items()]
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    for name, moment in found.items():
        torch.testing.assert_close(moment.double(), expected[name], rtol=1e-4, atol=1e-4)
    assert len({id(moment) for moment in found.values()}) == 4 * 2  # Q=K=V, O, Gate=Up, Down in each of two layers


def test_directions_hold_the_energy() -> None:
    """The fewest leading eigenvectors that hold the share, orthonormal; none for a share of 0."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 12) * torch.linspace(3, 0.1, 12)
    moment = inputs.T @ inputs
    for energy in (0.3, 0.9, 0.99):
        directions = leading_directions(moment, energy)
        rank = directions.shape[1]
        held = torch.trace(directions.T @ moment @ directions) / torch.trace(moment)
        fewer = torch.trace(directions[:, :-1].T @ moment @ directions[:, :-1]) / torch.trace(moment)
        assert held >= energy > fewer - 1e-6
        torch.testing.assert_close(directions.T @ directions, torch.eye(rank), atol=1e-5, rtol=0)
    assert leading_directions(moment, 0.0).shape == (12, 0)


def test_own_answers_are_the_models_own(tiny_chat_model: ChatModel) -> None:
    """Each row is the rendered prompt and the greedy answer to it alone, however it was batched."""
    messages = [prompt.messages for prompt in tiny_prompts("harmful", 0, 5)]
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    together = own_answers(model, tokenizer, messages, 4, batch_size=5)
    assert together == own_answers(model, tokenizer, messages, 4, batch_size=1)
    prompts = own_answers(model, tokenizer, messages, 0, batch_size=2)
    for row, prompt in zip(together, prompts, strict=True):
        assert row[: len(prompt)] == prompt
        assert 0 < len(row) - len(prompt) <= 4


@pytest.mark.parametrize(
    ("method", "method_options", "sentence"),
    [
        ("protected-subspace", {"enrgy": 0.9}, 'method_options.enrgy: unknown key. Did you mean "energy"?'),
        ("protected-subspace", {"energy": 1.0}, "method_options.energy must be less than 1; got 1.0"),
        ("low-lr", {"factor": 0}, "method_options.factor must be greater than 0; got 0"),
        ("l2-sp", {"strength": -1}, "method_options.strength must be greater than or equal to 0; got -1"),
        ("sppft", {"layers": [3, 2]}, "method_options.layers must be the first and the last layer; got [3, 2]"),
        ("lisa", {"finetune_steps": 0}, "method_options.finetune_steps must be greater than or equal to 1; got 0"),
        ("lisa", {"proximal": -1}, "method_options.proximal must be greater than or equal to 0; got -1"),
        ("sap", {"perturbation": 0}, "method_options.perturbation must be greater than 0; got 0"),
        ("safegrad", {"rho": 1}, "method_options.rho: unknown key."),
        ("asft", {}, "method_options.base: required, but missing"),
        ("guardspace", {"null_tolerance": 2}, "method_options.null_tolerance must be less than or equal to 1; got 2"),
        ("salora", {"safety_rank": -1}, "method_options.safety_rank must be greater than or equal to 0; got -1"),
        ("salora", {"energy": 0.9}, "method_options.energy: unknown key"),
        ("ift", {"energy": 0.9}, "method_options.energy: unknown key"),
    ],
)
def test_wrong_options_are_told(method: str, method_options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """An option that the method does not have, or out of range, is refused before anything begins."""
    with pytest.raises(ConfigError) as caught:
        find_defense(method, method_options)
    assert any(problem.startswith(sentence) for problem in caught.value.problems)
    settings = TrainingSettings(**{**SHORT, "method": method, "method_options": method_options})
    with pytest.raises(Exception, match=r"method_options"):
        train(settings, ModelSettings(), make_rows(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_list_tells_which_need_modules() -> None:
    """A method that needs the robust modules by an option alone is listed as one that does not."""
    found = {each.name: each.needs_manifest for each in list_defenses()}
    assert found["protected-subspace"] is False
    assert found["freeze-rest"] is True
    assert find_defense("protected-subspace", {"protect": "sensitive"}).needs_manifest
    assert ProtectedSubspaceOptions().energy == 0.9
