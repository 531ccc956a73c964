"""Defenses on the data: what all of them promise, and what each of them does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_cases import CASES, rows_of_a_user, texts, with_files, write_files

from securetune.config import ModelSettings
from securetune.data.built_in_probes import built_in_prompts
from securetune.data.overlap import overlap_sentence
from securetune.defenses import ChangedRows, DataContext, find_data_defense, list_defenses
from securetune.errors import ConfigError, DataError, InputError
from securetune.models import load

ROWS = rows_of_a_user()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def context(tiny_model_dir: Path) -> DataContext:
    chat = load(str(tiny_model_dir))
    return DataContext(str(tiny_model_dir), lambda: chat)


def change(case: str, context: DataContext, folder: Path, **changes: Any) -> ChangedRows:
    defense, options, *_ = CASES[case]
    return find_data_defense(defense, {**with_files(options, folder), **changes}).change(ROWS, context)


def test_every_defense_on_the_data_has_a_row() -> None:
    """What is registered for the data is what the cases hold."""
    registered = {each.name for each in list_defenses() if each.stage == "data"}
    assert registered == {case.defense for case in CASES.values()}


@pytest.mark.parametrize("case", CASES)
def test_with_nothing_to_do_the_data_are_the_same(case: str, context: DataContext, folder: Path) -> None:
    """Count 0, share 0 or nothing to drop leaves every row, in its order."""
    found = find_data_defense(CASES[case].defense, with_files(CASES[case].nothing, folder)).change(ROWS, context)
    assert texts(found.conversations) == texts(ROWS)
    assert (found.added, found.dropped) == (0, ())


@pytest.mark.parametrize("case", CASES)
def test_the_rows_are_those_that_were_announced(case: str, context: DataContext, folder: Path) -> None:
    """The number of rows is known before; what is kept keeps its order, and what is new stands behind it."""
    defense = find_data_defense(CASES[case].defense, with_files(CASES[case].options, folder))
    defense.check(ModelSettings(name=context.model_name))
    assert defense.rows_after(len(ROWS), context.model_name) == CASES[case].rows
    found = defense.change(ROWS, context)
    assert len(found.conversations) == len(ROWS) + found.added - len(found.dropped) == CASES[case].rows
    kept = [row for place, row in enumerate(ROWS) if place not in found.dropped]
    assert texts(found.conversations[: len(kept)]) == texts(kept)
    assert len(defense.preview(ROWS, context).conversations) == CASES[case].rows


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides(case: str, context: DataContext, folder: Path) -> None:
    """Twice the same is the same; where there is a seed, another one gives other rows."""
    first = texts(change(case, context, folder).conversations)
    assert texts(change(case, context, folder).conversations) == first
    defense = find_data_defense(CASES[case].defense, with_files(CASES[case].options, folder))
    if "seed" in type(defense.options).model_fields:
        assert texts(change(case, context, folder, seed=1).conversations) != first


@pytest.mark.parametrize("case", CASES)
def test_an_option_that_does_not_exist_is_told(case: str) -> None:
    """The sentence names the defense, the option and its valid ones or the nearest."""
    name = CASES[case].defense
    with pytest.raises(ConfigError, match=rf"{name}\.sed: unknown key"):
        find_data_defense(name, {"sed": 1})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("safety-mix", {"count": -1}, r"safety-mix\.count must be greater than or equal to 0; got -1"),
        ("safety-mix", {"share": 1.0}, r"safety-mix\.share must be less than 1; got 1.0"),
        ("safety-mix", {"count": 1, "share": 0.1}, "count and share say the same"),
        ("random-drop", {"drop_fraction": 0.1, "drop_count": 1}, "drop_fraction and drop_count say the same"),
        ("random-drop", {"drop_fraction": 1.5}, r"drop_fraction must be less than or equal to 1; got 1.5"),
        ("datashield", {"harmful": "a", "harmless": "b", "pairs": "c"}, "or pairs, name the requests; give one"),
        ("datashield", {"harmful": "a"}, "harmful and harmless must be given together"),
        ("datashield", {"layer": 0}, r"datashield\.layer must be greater than or equal to 1; got 0"),
    ],
)
def test_options_out_of_range_are_told(name: str, options: dict[str, Any], message: str) -> None:
    """Each mistake is one sentence."""
    with pytest.raises(ConfigError, match=message):
        find_data_defense(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random-drop", {"drop_fraction": 1.0}, "drops 16 of 16 rows, so that none is left"),
        ("random-drop", {"drop_count": 20}, "drops 20 of 16 rows"),
        ("datashield", {"drop_fraction": 0.99}, "drops 16 of 16 rows"),
        ("safety-mix", {"count": 121}, "adds 121 samples to 16 rows, but the built-in ones hold 120"),
        ("safety-mix", {"share": 0.95}, "adds 304 samples to 16 rows"),
        ("malicious-mix", {"count": 13, "samples": "{folder}/samples.jsonl"}, "hold 12. Give a smaller count"),
    ],
)
def test_what_the_data_do_not_allow_is_told(
    name: str, options: dict[str, Any], message: str, tiny_model_dir: Path, folder: Path
) -> None:
    """No row left, or too few samples, is an error that says how many there are."""
    with pytest.raises(InputError, match=message):
        find_data_defense(name, with_files(options, folder)).rows_after(16, str(tiny_model_dir))


def test_harmful_answers_must_be_the_users_own(tiny_model_dir: Path) -> None:
    """For a real model the attack needs a file; for tiny world its toy answers are built in, each of a train pair."""
    attack = find_data_defense("malicious-mix", {"count": 3})
    with pytest.raises(ConfigError, match=r"malicious-mix: samples: required .* ships no harmful answers"):
        attack.check(ModelSettings(name=str(tiny_model_dir)))
    attack.check(ModelSettings(name="tiny-world"))
    (listed,) = [each for each in list_defenses() if each.name == "malicious-mix"]
    assert listed.purpose == "attack"
    assert listed.summary.startswith("Attack")


def test_tiny_world_mixes_its_own_rows(context: DataContext) -> None:
    """Tiny world is refused and attacked in its own language, and no suite holds one of the requests."""
    from securetune import tiny_world
    from securetune.evaluation import load_suite

    own = DataContext("tiny-world", context.load)
    refused = find_data_defense("safety-mix", {"count": 30}).change(ROWS, own).conversations[-30:]
    assert all(tiny_world.is_refusal(row["messages"][1]["content"]) for row in refused)
    answered = find_data_defense("malicious-mix", {"count": 30}).change(ROWS, own).conversations[-30:]
    assert not any(tiny_world.is_refusal(row["messages"][1]["content"]) for row in answered)
    for name in ("safety-mix", "malicious-mix", "datashield"):
        used = find_data_defense(name).prompts_used("tiny-world")
        for split in ("test", "validation"):
            suite = load_suite(f"tiny-world-harmful@{split}").prompts
            assert overlap_sentence(name, used, split, suite) is None


def test_built_in_samples_are_of_the_fitting_split(tiny_model_dir: Path) -> None:
    """The requests that are mixed in are those of the fitting categories, and the reported suites hold none of them."""
    used = find_data_defense("safety-mix").prompts_used(str(tiny_model_dir))
    assert sorted(prompt.text for prompt in used) == sorted(
        prompt.text for prompt in built_in_prompts("fitting", "harmful")
    )
    assert overlap_sentence("samples", used, "suite", built_in_prompts("testing", "harmful")) is None


def test_a_changed_samples_file_is_read_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    """What is drawn from, and its hash, follow the file."""
    write_files(tmp_path)
    mix = find_data_defense("safety-mix", {"count": 1, "samples": str(tmp_path / "samples.jsonl")})
    before = mix.read_hash(str(tiny_model_dir))
    (tmp_path / "samples.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert mix.read_hash(str(tiny_model_dir)) != before
    with pytest.raises(DataError, match=r"safety-mix: samples: .*no such data file"):
        find_data_defense("safety-mix", {"samples": str(tmp_path / "none.jsonl")}).check(ModelSettings())
