"""The demo on a reduced budget, as real processes: it ends, and when it is killed it goes on to the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import securetune
from securetune.artifacts import Comparison, RobustModules, RunRecord, read_artifact, read_json_lines
from securetune.config import load_run_config, parse_overrides
from securetune.errors import InputError, StartModelError

pytestmark = pytest.mark.pipeline

STALLED_COMMAND = str(Path(__file__).with_name("stalled_command.py"))

RECIPE = """
model: {name: tiny-world}
data: tiny-world
probes: {max_prompts: 24}
analysis: {noise_seeds: 2, epsilon: 0.3, controls: false}
search: {noise_seeds: 2, chunk_size: 8}
training: {learning_rate: 5.0e-4, max_steps: 6, per_device_train_batch_size: 8, max_length: 128, save_steps: 2}
methods:
  ift: {}
  swat: {warmup_phase_steps: 4}
evaluation:
  suites: [tiny-world-harmful, tiny-world-harmless]
  judges: [keywords-qi, tiny-world-oracle]
  task: tiny-world-query
  max_prompts: 8
  max_new_tokens: 24
"""


class Run:
    """A `securetune run` in a process of its own."""

    def __init__(self, folder, workers):
        self.out = folder / "run"
        self._recipe = folder / "recipe.yaml"
        self._recipe.write_text(RECIPE)
        self._workers = workers

    def config(self, *overrides):
        return load_run_config(self._recipe, parse_overrides([f"workers={self._workers}", *overrides]))

    def start(self, *program, **environment):
        command = [sys.executable, *(program or ("-m", "securetune")), "run", str(self._recipe), "--out", str(self.out)]
        command += ["--json", "--set", f"workers={self._workers}"]
        environment = {**os.environ, **environment}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def stop_before(self, file, row, how):
        """Start, send a signal when a row of the file is about to be written, and return status and stderr."""
        reached = self._recipe.with_name("reached")
        reached.unlink(missing_ok=True)
        process = self.start(STALLED_COMMAND, STALL_FILE=file, STALL_ROW=str(row), STALL_REACHED=str(reached))
        try:
            deadline = time.monotonic() + 240
            while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert process.poll() is None, f"the run ended before it could be stopped: {process.communicate()[1]}"
            assert reached.exists(), f"the run never came to row {row} of {file}"
            process.send_signal(how)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, errors

    def finish(self):
        process = self.start()
        output, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        return output, errors

    @property
    def record(self):
        return read_artifact(self.out / "run.json", RunRecord)

    def results(self):
        """Return everything that must not depend on how often the run was stopped."""
        files = [
            *self.out.glob("methods/*/*/model/*"),
            *self.out.glob("**/responses.jsonl"),
            *self.out.glob("search/*"),
        ]
        found = {str(path.relative_to(self.out)): path.read_bytes() for path in files if path.name != "README.md"}
        comparison = read_artifact(self.out / "comparison.json", Comparison).model_copy(update={"seconds": None})
        return found, comparison


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A run that nobody stopped, with what it printed."""
    run = Run(tmp_path_factory.mktemp("complete"), workers=2)
    return run, *run.finish()


def test_the_reduced_demo_ends(complete):
    """A run ends with every stage complete, with the report, and with every file in its place."""
    run, _, _ = complete
    assert run.record.status == "complete"
    assert {stage.state for stage in run.record.stages.values()} == {"complete"}
    cells = [f"methods/{label}/seed-0" for label in ("ift", "swat")]
    assert set(run.record.stages) == {"start", "analysis", "search", "report", *cells}
    expected = ["run.json", "config.yaml", "report.html", "comparison.json", "start/scores.json"]
    expected += ["analysis/robustness.json", "analysis/heatmap.svg", "search/search_trace.jsonl"]
    expected += [f"search/{name}_modules.json" for name in ("robust", "sensitive", "random")]
    for cell in cells:
        expected += [f"{cell}/{name}" for name in ("model/model.safetensors", "training.json", "training_log.jsonl")]
        expected += [f"{cell}/evaluation/scores.json", f"{cell}/evaluation/tiny-world-harmful/responses.jsonl"]
    assert [name for name in expected if not (run.out / name).is_file()] == []
    assert list(run.out.glob("**/*.part")) == []


def test_stdout_is_one_json_document(complete):
    """`--json` prints one document: each method's metrics, the modules, the agreement of closed form and sampling."""
    _, output, errors = complete
    document = json.loads(output)
    assert set(document["methods"]) == {"start", "ift", "swat"}
    for metrics in document["methods"].values():
        for metric in ("asr", "harmfulness", "task_accuracy", "over_refusal"):
            assert {"mean", "low", "high", "per_seed"} <= set(metrics[metric])
    assert document["robust_modules"]
    assert {"spearman", "median_ratio"} <= set(document["closed_form_vs_sampled"])
    assert document["seconds"] > 0
    assert "methods/swat/seed-0: complete" in errors


def test_the_manifest_belongs_to_the_run(complete):
    """The controls have about as many parameters as the searched set, and are other modules."""
    run, _, _ = complete
    sets = {
        name: read_artifact(run.out / "search" / f"{name}_modules.json", RobustModules)
        for name in ("robust", "sensitive", "random")
    }
    assert sets["sensitive"].parameter_fraction == pytest.approx(sets["robust"].parameter_fraction, abs=0.05)
    assert sets["sensitive"].modules != sets["robust"].modules
    assert {name: found.selection for name, found in sets.items()} == {
        "robust": "searched",
        "sensitive": "sensitive",
        "random": "random",
    }


def test_a_stopped_run_ends_with_the_same_result(complete, tmp_path):
    """Killed in an evaluation, then interrupted in a training, a run still ends with the same weights and answers."""
    run = Run(tmp_path, workers=1)
    answers = "start/tiny-world-harmful/responses.jsonl.part"
    status, _ = run.stop_before(answers, row=5, how=signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert run.record.status == "running"
    assert len(list(read_json_lines(run.out / answers))) == 4
    assert not (run.out / "start" / "scores.json").exists()

    cell = run.out / "methods" / "swat" / "seed-0"
    status, errors = run.stop_before("methods/swat/seed-0/training_log.jsonl", row=8, how=signal.SIGINT)
    assert status == 130
    assert "To go on: securetune run" in errors
    assert "Traceback" not in errors
    assert run.record.status == "interrupted"
    assert run.record.stages["start"].state == "complete"
    assert (cell / "phases" / "warmup" / "phase.json").exists()  # four steps and its end: the first five rows
    assert not (cell / "training.json").exists()

    _, errors = run.finish()
    assert "stages are complete already" in errors
    assert run.results() == complete[0].results()


def test_a_complete_run_is_not_repeated(complete):
    """Starting a complete run again changes no result and takes no worker."""
    run, _, _ = complete
    before = run.results()
    logs = {path: path.stat().st_mtime_ns for path in run.out.glob("logs/*")}
    securetune.run(run.config(), run.out)
    assert run.results() == before
    assert {path: path.stat().st_mtime_ns for path in run.out.glob("logs/*")} == logs
    assert run.record.status == "complete"


def test_another_recipe_in_the_same_folder(complete):
    """A run's folder is not used for another run: one line says what differs."""
    run, _, _ = complete
    with pytest.raises(InputError) as caught:
        securetune.run(run.config("training.max_steps=7"), run.out)
    assert caught.value.problems == [
        f"{run.out}: holds another run (training.max_steps was 6, is 7). Give another --out, or remove it."
    ]


def test_a_start_model_that_does_not_refuse(tmp_path):
    """The model from before the alignment has no safety to keep: the run says so and stops."""
    run = Run(tmp_path, workers=1)
    with pytest.raises(StartModelError, match="The start model tiny-world-base refuses only"):
        securetune.run(run.config("model.name=tiny-world-base"), run.out)
    assert (run.record.status, run.record.stages["start"].state) == ("failed", "failed")
    assert {run.record.stages[name].state for name in ("analysis", "search", "methods/ift/seed-0")} == {"waiting"}
