"""What `SecureSFTTrainer` says of a model that it saves or pushes to the hub."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects
from secure_script import LORA, UPPER, secure, start
from short_training import make_rows
from transformers import TrainerCallback
from trl import SFTConfig

from securetune import SecureSFTTrainer
from securetune.artifacts import RobustModules, read_artifact, write_json
from securetune.training.data_facts import content_hash, describe_data
from securetune.training.model_card import manifest_hash


class Probe(TrainerCallback):
    """Logs what the refusal probe logs."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.rates = iter([1.0, 0.875, 0.75, 0.5])

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.log({"refusal_probe/refusal_rate": next(self.rates)})

    on_train_end = on_train_begin


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, manifest: RobustModules, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer after both phases, whose manifest is a file in a folder of this machine."""
    out = tmp_path_factory.mktemp("secret-folder") / "tuned"
    write_json(out.parent / "modules.json", manifest)
    config = secure(
        out, robust_modules=str(out.parent / "modules.json"), log_update_norms=True, warmup_phase_learning_rate=5e-3,
        eval_strategy="steps", eval_steps=3.0, hub_token="hf_secret",
    )  # fmt: skip
    rows = Dataset.from_list(make_rows()[:8])
    trainer = start(SecureSFTTrainer, config, tiny_model_dir, callbacks=[Probe()], eval_dataset=rows)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def card(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    folder = tmp_path_factory.mktemp("saved")
    trained.save_model(str(folder))
    return ModelCard.load(folder / "README.md")


def test_the_card_says_how_the_model_was_made(trained: Any, card: ModelCard, manifest: RobustModules):
    """Method and its settings, manifest, start model, data, figures of both phases, versions, licence and limits."""
    log, warmup = trained.state.log_history, trained.log_of(trained.all_phases()[0])
    losses = [row["loss"] for row in log if "loss" in row]
    norm = [row["update_norm/rest"] for row in log if "update_norm/rest" in row][-1]
    evaluated = [row["eval_loss"] for row in log if "eval_loss" in row][-1]
    for expected in (
        "Method: `swat` (arXiv 2410.04524 v2)",
        "embeddings, norms and head: rest",
        "- warmup: 4 steps; robust at learning rate 0.005",
        "- main: 6 steps; all at learning rate 0.01",
        "7 modules, found by analysis and search.",
        f"content hash `{manifest_hash(manifest)}`",
        "They hold 50.0% of the projection parameters.",
        f"Start model: `{Path(manifest.model.name).name}`",
        "- `model.layers.1.mlp.up_proj`",
        f"40 rows, content hash `{content_hash(Dataset.from_list(make_rows()))}`",
        f"training loss, nats per token: {losses[0]:.4g} at first, {losses[-1]:.4g} at last",
        f"training loss, nats per token: {warmup[1]['loss']:.4g} at first",
        f"evaluation loss, nats per token: {evaluated:.4g}",
        "refusal rate in the probe: 100.0% at first, 87.5% at last",
        "refusal rate in the probe: 75.0% at first, 50.0% at last",
        f"relative update norm, rest: {norm:.4g}",
        "relative update norm, rest: 0\n",
        f"- trl: {trl.__version__}",
        "This is no safety guarantee",
        "## Licence",
    ):
        assert expected in card.text, expected


def test_the_card_is_trls_card_too(card: ModelCard):
    """Its front matter, tags and citations are those of TRL, with ours besides."""
    assert {"generated_from_trainer", "trl", "sft", "securetune", "swat"} <= set(card.data.tags)
    assert card.data.library_name == "transformers"
    assert "Cite TRL as" in card.text


def test_the_card_tells_nothing_of_the_machine(trained: Any, card: ModelCard, tiny_model_dir: Path):
    """No folder, no token, and no link to a model that is called None."""
    folders = {str(tiny_model_dir.parent), str(Path(trained.args.output_dir).parent), "secret-folder", str(Path.home())}
    content = card.content + (Path(trained.args.output_dir) / "robust_modules.json").read_text()
    assert [word for word in (*folders, "hf_secret", "huggingface.co/None") if word in content] == []


def test_the_manifest_lies_beside_the_model(trained: Any, manifest: RobustModules, tmp_path: Path):
    """It can be used as it is: the same modules, accepted for the start model."""
    trained.save_model(str(tmp_path / "saved"))
    found = read_artifact(tmp_path / "saved/robust_modules.json", RobustModules)
    assert found.modules == manifest.modules
    assert list((tmp_path / "saved").glob("*.bin")) == []
    assert found.model.weights_fingerprint == manifest.model.weights_fingerprint


def test_the_card_of_an_adapter_and_a_list_of_modules(tiny_model_dir: Path, tmp_path: Path):
    """PEFT's own card, which names the start model's folder, does not take its place; a list says that it is one."""
    config = secure(tmp_path / "out", method="ml-lr", learning_rate_ratio=0.25)
    trainer = start(SecureSFTTrainer, config, tiny_model_dir, LORA)
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "out/README.md").read_text()
    assert "4 modules, named by the user, without a manifest." in text
    assert "robust at learning rate 0.01, rest at learning rate 0.0025" in text
    assert UPPER[0] in text
    assert str(tiny_model_dir.parent) not in text
    assert not (tmp_path / "out/robust_modules.json").exists()


def test_a_plain_configuration_keeps_trls_card(tiny_model_dir: Path, tmp_path: Path):
    """With TRL's own `SFTConfig`, nothing is added."""
    config = SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False)
    start(SecureSFTTrainer, config, tiny_model_dir).create_model_card()
    assert "Secure tuning" not in (tmp_path / "README.md").read_text()


def test_plain_tuning_with_our_configuration_is_described_too(tiny_model_dir: Path, tmp_path: Path):
    """Also before it is trained, when there are no figures yet."""
    config = secure(tmp_path, method="ift", robust_modules=None)
    start(SecureSFTTrainer, config, tiny_model_dir).create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "- main: 6 steps; all at learning rate 0.01\n\n## Robust modules\n\nNone" in text


def test_what_is_pushed(trained: Any, monkeypatch: pytest.MonkeyPatch):
    """Card, manifest, weights and tokenizer; nothing of checkpoints or the warm-up, and no pickle with the token."""
    pushed: dict[str, Path] = {}

    def upload(self: HfApi, *, folder_path: str, ignore_patterns: list[str], **named: Any) -> Future:
        files = {path.relative_to(folder_path).as_posix(): path for path in Path(folder_path).rglob("*")}
        found = [name for name, path in files.items() if path.is_file()]
        pushed.update({name: files[name] for name in filter_repo_objects(found, ignore_patterns=ignore_patterns)})
        done: Future = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **named: type("Repo", (), {"repo_id": f"me/{name}"}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    out = Path(trained.args.output_dir)
    assert (out / "checkpoint-6/optimizer.pt").exists()
    assert list(out.glob("_warmup/checkpoint-*/optimizer.pt"))
    assert b"hf_secret" in (out / "checkpoint-6/training_args.bin").read_bytes()
    trained.init_hf_repo()
    trained._push_from_checkpoint(str(out / "checkpoint-6"))  # as every save does with `push_to_hub=True`
    assert {"model.safetensors", "config.json"} <= pushed.keys()
    trained.push_to_hub()
    assert {"README.md", "robust_modules.json", "model.safetensors", "config.json", "tokenizer.json"} <= pushed.keys()
    assert [name for name in pushed if "/" in name or "optimizer" in name or name.endswith(".bin")] == []
    assert "## Secure tuning" in pushed["README.md"].read_text()


def test_a_hub_data_set_is_named_with_its_revision():
    """As its files say where they were loaded from; a streamed one is neither counted nor hashed."""
    rows = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    rows.info.download_checksums = {"hf://datasets/owner/name@0a1b2c/data/train.parquet": {}}
    facts = describe_data(rows)
    assert (facts.hub_name, facts.revision, facts.rows) == ("owner/name", "0a1b2c", 2)
    assert describe_data(rows.to_iterable_dataset())[2:] == (None, None)


def test_the_hash_is_of_the_content():
    """The same rows have one hash, wherever they came from; another order or another text has another."""
    rows = make_rows()
    again = json.loads(json.dumps(rows))
    hashes = [content_hash(Dataset.from_list(some)) for some in (rows, again, rows[::-1], rows[1:])]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert content_hash(Dataset.from_list(rows).select(range(1, 40))) == hashes[3]
