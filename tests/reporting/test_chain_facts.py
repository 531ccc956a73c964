"""The report says what defenses did to the data of a method, and what its models were shown."""

from pathlib import Path

from fake_run import Outcome, write_fake_run

from securetune.artifacts import (
    DataPreparation,
    DataStep,
    Scores,
    ShownStep,
    TrainingResult,
    environment,
    read_artifact,
    write_json,
)
from securetune.reporting import write_report
from securetune.reporting.facts import list_facts
from securetune.reporting.run_results import read_run

STEP = DataStep(
    defense="malicious-mix",
    purpose="attack",
    options={"count": 5, "seed": 0},
    rows_before=100,
    added=5,
    dropped=0,
    rows_after=105,
    hash="b" * 64,
    facts={"samples": "built in"},
)
PREPARED = DataPreparation(
    key="k", given_hash="a" * 64, given=100, hash="b" * 64, conversations=105, steps=[STEP], duration_seconds=1.0,
    environment=environment(),
)  # fmt: skip


def test_data_and_generation_are_among_the_facts(tmp_path: Path) -> None:
    """Rows, hashes and options by method, an attack by its name; methods without a chain have no such heading."""
    outcomes = {"ift": Outcome(0.6, 0.9, method="ift"), "mixed": Outcome(0.8, 0.9, method="ift")}
    folder = write_fake_run(tmp_path / "run", outcomes, (0,), prompts=10)
    cell = folder / "methods" / "mixed" / "seed-0"
    training = read_artifact(cell / "training.json", TrainingResult)
    data = training.data.model_copy(update={"preparation": PREPARED})
    write_json(cell / "training.json", training.model_copy(update={"data": data}))
    scores = read_artifact(cell / "evaluation" / "scores.json", Scores)
    shown = [ShownStep(name="ptst", options={"prompt": "<b>be kind</b>"})]
    write_json(cell / "evaluation" / "scores.json", scores.model_copy(update={"generation": shown}))
    facts = dict(list_facts(read_run(folder)))
    assert [heading for heading in facts if "ift" in heading and "ettings" not in heading] == []
    rows = dict(facts["Data of mixed"])
    assert rows["given"] == f"100 conversations, hash {'a' * 16}"
    assert rows["before.0: malicious-mix (attack)"] == "100 rows + 5 - 0 = 105"
    assert rows["before.0: malicious-mix (attack).count"] == "5"
    assert rows["trained on"] == f"105 conversations, hash {'b' * 16}"
    assert facts["At generation: mixed"] == [("ptst.prompt", "<b>be kind</b>")]
    page = write_report(folder).read_text()
    assert "100 rows + 5 - 0 = 105" in page
    assert "<b>be kind</b>" not in page
