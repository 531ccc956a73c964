"""What `SecureSFTTrainer` does with prompts: robust modules found by itself, and refusals watched while training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from securetune import SecureSFTConfig, SecureSFTTrainer
from securetune.config import ProbeSettings
from securetune.data.conversations import read_conversations
from securetune.data.prompts import load_probes
from securetune.errors import ConfigError
from securetune.models import map_modules
from securetune.models.registry import find_model

SHORT = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files with tiny world's own requests."""
    probes = load_probes(ProbeSettings(max_prompts=24), "tiny-world")
    folder, found = tmp_path_factory.mktemp("prompts"), {}
    for kind in ("harmful", "harmless"):
        texts = [p.messages[0]["content"] for part in ("fit", "score") for p in getattr(probes, f"{part}_{kind}")]
        (folder / f"{kind}.txt").write_text("\n".join(texts))
        found[f"probe_{kind}"] = str(folder / f"{kind}.txt")
    return found


def start(out: Path, **settings: Any) -> SecureSFTTrainer:
    """Make a trainer of tiny world, given as a folder, as a script would give its model."""
    folder = find_model("tiny-world").location
    return SecureSFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        SecureSFTConfig(str(out), **{**SHORT, **settings}),
        train_dataset=Dataset.from_list(read_conversations("tiny-world", count=64)),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def test_auto_finds_the_robust_modules_itself(prompts: dict[str, str], tmp_path: Path):
    """Analysis and search run first; the first layer, the most sensitive one, stays out; the model is unchanged."""
    trainer = start(tmp_path, robust_modules="auto", **prompts)
    fresh = AutoModelForCausalLM.from_pretrained(find_model("tiny-world").location, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), fresh.parameters(), strict=True))
    modules = {module.name: module for module in map_modules(trainer.model)}
    chosen = [modules[name] for name in trainer.robust_modules]
    share = sum(module.parameter_count for module in chosen) / sum(m.parameter_count for m in modules.values())
    assert 0.4 < share < 0.7
    assert sum(module.layer == 0 for module in chosen) < 4
    trainer.train()


def test_refusals_are_logged_while_they_erode(prompts: dict[str, str], tmp_path: Path):
    """At the start and every second step of each phase; the aligned model refuses the harmful prompts and no other."""
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in (2, 3)]
    trainer = start(
        tmp_path, robust_modules=names, warmup_phase_steps=2, refusal_probe_steps=2, refusal_probe_prompts=8, **prompts
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "refusal_probe/refusal_rate" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["refusal_probe/refusal_rate"] == 1.0
    assert rows[0]["refusal_probe/over_refusal_rate"] == 0.0
    assert trainer.model.training


def test_a_training_ends_where_refusals_end(prompts: dict[str, str], tmp_path: Path):
    """With a rate that ruins the model within steps, it stops at the first probe that finds refusals gone."""
    trainer = start(
        tmp_path, method="ift", learning_rate=0.1, max_steps=50, refusal_probe_steps=5, refusal_probe_prompts=8,
        refusal_probe_stop_below=0.5, **prompts,
    )  # fmt: skip
    trainer.train()
    last = [row for row in trainer.state.log_history if "refusal_probe/refusal_rate" in row][-1]
    assert last["refusal_probe/refusal_rate"] < 0.5
    assert trainer.state.global_step == last["step"] < 50


def test_mistakes_in_the_probes_settings_are_named():
    """All of them together, before anything is loaded."""
    with pytest.raises(ConfigError) as caught:
        SecureSFTConfig(
            "out", method="ift", use_cpu=True, bf16=False, probe_harmful="x.txt", refusal_probe_prompts=0,
            refusal_probe_stop_below=1.5,
        )  # fmt: skip
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "probe_harmful",
        "refusal_probe_prompts",
        "refusal_probe_stop_below",
        "refusal_probe_stop_below",
    ]
