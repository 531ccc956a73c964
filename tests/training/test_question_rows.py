"""Data sets that TRL alone cannot train on: a question and an answer in a row."""

from pathlib import Path

import pytest
from datasets import Dataset
from secure_script import SHORT, secure
from short_training import make_rows
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from securetune import SecureSFTTrainer
from securetune.errors import DataError

PAIRS = [[message["content"] for message in row["messages"]] for row in make_rows()]
ALPACA = Dataset.from_list([{"instruction": asked, "input": "", "output": answer} for asked, answer in PAIRS])
GSM8K = Dataset.from_list([{"question": asked, "answer": answer} for asked, answer in PAIRS])
TURNS = Dataset.from_list([{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in make_rows()])


def trainer(kind: type[SFTTrainer], folder: Path, config: SFTConfig, rows: Dataset, **more) -> SFTTrainer:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return kind(model, config, train_dataset=rows, processing_class=tokenizer, **more)


@pytest.mark.parametrize("rows", [ALPACA, GSM8K, ALPACA.to_iterable_dataset()], ids=["alpaca", "gsm8k", "streamed"])
def test_questions_and_answers_are_prompts_and_completions(rows: Dataset, tiny_model_dir: Path, tmp_path: Path):
    """The losses are those of TRL on the same text as prompts and completions, in training and in evaluation."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 3.0, "save_strategy": "no", "max_steps": 3}
    plain = SFTConfig(str(tmp_path / "trl"), **{**SHORT, **evaluated}, dataset_text_field="no such column")
    ours = secure(tmp_path / "ours", method="ift", robust_modules=None, **evaluated)
    turns = TURNS if isinstance(rows, Dataset) else TURNS.to_iterable_dataset()
    found = []
    for kind, config, data in ((SFTTrainer, plain, turns), (SecureSFTTrainer, ours, rows)):
        trained = trainer(kind, tiny_model_dir, config, data, eval_dataset={"some": data.take(8)})
        trained.train()
        found.append([row.get("loss", row.get("eval_some_loss")) for row in trained.state.log_history])
    assert found[0] == found[1]
    assert len([loss for loss in found[0] if loss is not None]) == 4


def test_what_trl_knows_is_left_to_it(tiny_model_dir: Path, tmp_path: Path):
    """A text column beside a question and an answer is what is trained on, and a user's own function goes first."""
    texts = ALPACA.add_column("text", ["sure"] * len(ALPACA))
    config = secure(tmp_path, method="ift", robust_modules=None)
    for rows, more in ((texts, {}), (ALPACA, {"formatting_func": lambda row: "sure"})):
        made = trainer(SecureSFTTrainer, tiny_model_dir, config, rows, **more)
        assert {len(row["input_ids"]) for row in made.train_dataset} == {2}


def test_a_row_without_an_answer_is_named(tiny_model_dir: Path, tmp_path: Path):
    """With its number, and what it lacks."""
    rows = Dataset.from_list([*ALPACA.select(range(2)), {"instruction": "why?", "input": "", "output": ""}])
    with pytest.raises(DataError, match="row 3 of the data set: `output` must be text that is not empty"):
        trainer(SecureSFTTrainer, tiny_model_dir, secure(tmp_path, method="ift", robust_modules=None), rows)
