"""The order of a run: dependencies, isolated failures, and going on. The jobs are fakes that run at once."""

import pytest

from securetune.artifacts import ModelIdentity, RunRecord, Scores, read_artifact, write_json, write_text
from securetune.config import check_run_config, read_yaml
from securetune.errors import InputError, RunError, StartModelError
from securetune.pipeline import running
from securetune.pipeline.folder import RunFolder, open_record
from securetune.pipeline.jobs import list_jobs
from securetune.pipeline.sharing import take_over
from securetune.progress import RunObserver
from securetune.workers import Ended, Progressed

CELLS = ["methods/ift/seed-0", "methods/swat/seed-0", "methods/ift/seed-1", "methods/swat/seed-1"]


class FakePool:
    """Runs each job when its events are asked for; two at a time, the later one first."""

    def __init__(self, workers, threads, logs, gpus):
        self.running = []
        self.jobs = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.jobs.clear()

    @property
    def has_idle_worker(self):
        return len(self.jobs) < 2

    def start(self, name, function, *arguments):
        self.jobs.append((name, function, arguments))
        self.running.append(name)

    def events(self):
        name, function, arguments = self.jobs.pop()
        self.running.remove(name)
        yield Progressed(name, "work", 1, 1)
        try:
            function(*arguments, None)
        except Exception as error:
            yield Ended(name, error)
        else:
            yield Ended(name, None)


class Recorder(RunObserver):
    def __init__(self):
        self.ended = []
        self.found = None

    def run_began(self, complete, total):
        self.found = (complete, total)

    def stage_ended(self, name, seconds, error):
        self.ended.append((name, error))


class FakeRun:
    """A run whose jobs only note that they were done, or fail as they are told."""

    def __init__(self, path, monkeypatch):
        self.config = check_run_config({"data": "tiny-world", "methods": {"ift": {}, "swat": {}}, "seeds": [0, 1]})
        self.folder = RunFolder(path)
        self.done = []
        self.failures = {}
        monkeypatch.setattr(running, "WorkerPool", FakePool)
        monkeypatch.setattr(running, "check_run", lambda config, folder: config.evaluation)
        monkeypatch.setattr(running, "do", self.do)
        monkeypatch.setattr(running._Run, "_write_report", lambda run: self.done.append("report"))

    def do(self, job, config, folder, progress):
        for needed in job.needs:
            assert needed in self.done, f"{job.name} began before {needed} was complete"
        if job.name in self.failures:
            raise self.failures[job.name]
        write_text(job.marker, "complete")
        self.done.append(job.name)

    def start(self):
        self.observer = Recorder()
        return running.run(self.config, self.folder.path, self.observer)

    @property
    def record(self):
        return read_artifact(self.folder.record, RunRecord)


@pytest.fixture
def fake_run(tmp_path, monkeypatch):
    return FakeRun(tmp_path / "run", monkeypatch)


def test_every_job_is_done_once(fake_run):
    """A run does the start model, the analysis, the search, every cell and then the report."""
    assert fake_run.start() == fake_run.folder.report
    assert sorted(fake_run.done) == sorted(["start", "analysis", "search", *CELLS, "report"])
    assert fake_run.done[-1] == "report"
    assert fake_run.record.status == "complete"
    assert {stage.state for name, stage in fake_run.record.stages.items() if name != "report"} == {"complete"}


def test_jobs_begin_with_the_start_model_and_go_seed_by_seed(fake_run):
    """The start model is first, since nothing matters if it does not refuse; then one seed of every method."""
    jobs = list_jobs(fake_run.config, fake_run.folder)
    assert [job.name for job in jobs] == ["start", "analysis", "search", *CELLS]
    assert {job.name: job.needs for job in jobs if job.cell} == {
        "methods/ift/seed-0": (),
        "methods/swat/seed-0": ("search",),
        "methods/ift/seed-1": (),
        "methods/swat/seed-1": ("search",),
    }


def test_a_method_may_have_a_search_of_its_own(fake_run):
    """Methods with other settings of the search wait for one of their own; equal settings share it, and a training."""
    small = {"search": {"target_fraction": 0.25}}
    methods = {"swat": {}, "swat-small": {"method": "swat", **small}, "ml-lr": dict(small)}
    methods["again"] = {**methods["swat-small"], "search": {"target_fraction": 0.25, "tolerance": 0.05}}
    fake_run.config = check_run_config({"data": "tiny-world", "methods": methods})
    fake_run.start()
    needs = {job.name: job.needs for job in list_jobs(fake_run.config, fake_run.folder)}
    own = next(name for name in needs if name.startswith("search-"))
    assert needs == {
        "start": (),
        "analysis": (),
        "search": ("analysis",),
        own: ("analysis",),
        "methods/swat/seed-0": ("search",),
        "methods/swat-small/seed-0": (own,),
        "methods/ml-lr/seed-0": (own,),
        "methods/again/seed-0": ("methods/swat-small/seed-0",),
    }
    assert fake_run.folder.manifest("searched", own.removeprefix("search-")).exists()
    written = read_yaml(fake_run.folder.config)["methods"]
    assert [written[label].get("search") for label in methods] == [None] + [{"target_fraction": 0.25}] * 3


def _run_like(first, path, monkeypatch, **changes):
    """Start a second run beside a complete one, and return what it did."""
    first.folder.start_scores.unlink()  # the fake's are no scores; the answers have a test of their own
    second = FakeRun(path, monkeypatch)
    second.config = check_run_config({"data": "other.jsonl", "methods": {"swat": {}}, **changes})
    second.done += ["analysis", "search"]  # the fake wants what a job needs to be there
    running.run(second.config, second.folder.path, like=first.folder.path)
    assert second.record.status == "complete"
    return second.done[2:]


def test_a_run_takes_the_analysis_of_another_one_over(fake_run, tmp_path, monkeypatch):
    """On other data the same analysis and search are copied, not done again; the report finds them in their places."""
    fake_run.start()
    done = _run_like(fake_run, tmp_path / "second", monkeypatch)
    assert sorted(done) == ["methods/swat/seed-0", "report", "start"]
    assert RunFolder(tmp_path / "second").robustness.read_text() == "complete"
    assert RunFolder(tmp_path / "second").manifest("searched").read_text() == "complete"


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"analysis": {"seed": 3}}, {"analysis", "search"}),
        ({"analysis": {"perturbation": "update"}}, {"analysis", "search"}),
        ({"model": {"name": "tiny-world-base"}}, {"analysis", "search"}),
        ({"methods": {"swat": {"search": {"seed": 3}}}}, {"search-"}),
    ],
)
def test_only_what_would_come_out_the_same_is_taken_over(fake_run, tmp_path, monkeypatch, changes, again):
    """Another model, other settings, or an analysis that follows the data: it is done anew."""
    if changes.get("analysis") == {"perturbation": "update"}:
        fake_run.config = check_run_config({"data": "tiny-world", "methods": {"swat": {}}, **changes})
    fake_run.start()
    done = _run_like(fake_run, tmp_path / "second", monkeypatch, **changes)
    begun = {name.rstrip("0123456789abcdef") if "-" in name else name for name in done}
    assert begun - {"start", "methods/swat/seed-", "report"} == again


def test_answers_to_the_same_suites_are_taken_over(fake_run, tmp_path):
    """The start model's answers to the suites come along, but not those to the task; none with other settings."""
    fake_run.start()
    for name in ("harmful", "task"):
        write_text(fake_run.folder.start / name / "responses.jsonl", name)
    suite = {"name": "harmful", "kind": "harmful", "wrapper": None, "prompt_set_hash": "p", "count": 1}
    model = dict.fromkeys(ModelIdentity.model_fields, "m") | {"parameter_count": 1}
    scores = ("refusal_rate", "attack_success_rate", "harmfulness", "unusable_successes")
    empty = {**{key: {} for key in scores}, "problems": {"empty": 0, "looping": 0, "truncated": 0}}
    rest = {"settings": {}, "judges": {}, "task": None, "duration_seconds": {}, "environment": {}}
    write_json(fake_run.folder.start_scores, Scores(model=model, suites=[{**suite, **empty}], **rest))
    for place, evaluation in enumerate([{"task": "other.jsonl"}, {"max_new_tokens": 9}]):
        out = RunFolder(tmp_path / str(place))
        config = check_run_config({"data": "other.jsonl", "evaluation": evaluation})
        jobs = list_jobs(config, out)
        take_over(out, fake_run.folder, config, open_record(out, config, [job.name for job in jobs]), jobs)
        copied = sorted(path.name for path in out.start.iterdir()) if out.start.exists() else []
        assert copied == (["harmful"] if place == 0 else [])


CHAINED = {
    "ift": {},
    "ptst": {"method": "ift", "generation": ["ptst"]},
    "mix": {"method": "ift", "before": ["safety-mix"]},
    "mix-half": {"method": "ift", "before": ["safety-mix"], "after": ["wise-ft"]},
}


def test_data_are_prepared_before_the_cells_that_train_on_them(fake_run):
    """Once for all seeds; where that fails, its cells are told of and all others are complete."""
    fake_run.config = check_run_config({"data": "tiny-world", "methods": CHAINED, "seeds": [0, 1]})
    (job,) = [job for job in list_jobs(fake_run.config, fake_run.folder) if job.kind == "data"]
    fake_run.failures[job.name] = RuntimeError("no memory")
    with pytest.raises(RunError) as caught:
        fake_run.start()
    lost = [f"methods/{label}/seed-{seed}" for seed in (0, 1) for label in ("mix", "mix-half")]
    assert {name for name, stage in fake_run.record.stages.items() if stage.state == "failed"} == {job.name, *lost}
    assert f"methods/mix/seed-0 failed: it needs {job.name}, which failed" in str(caught.value)
    fake_run.failures.clear()
    fake_run.done = [name for name in fake_run.done if name != "report"]
    fake_run.start()
    assert fake_run.done.count(job.name) == 1
    assert {*lost} <= {*fake_run.done}


def test_prepared_data_are_not_taken_over(fake_run, tmp_path, monkeypatch):
    """Another run's data are another data set's: they are prepared anew, while analysis and search come along."""
    fake_run.config = check_run_config({"data": "tiny-world", "methods": CHAINED})
    fake_run.start()
    done = _run_like(fake_run, tmp_path / "second", monkeypatch, methods=CHAINED)
    assert any(name.startswith("data/safety-mix-") for name in done)
    assert not {"analysis", "search"} & {*done}


def test_a_run_like_one_that_is_not_there_does_everything(fake_run, tmp_path):
    """A folder that holds no run, or an unfinished one, is no reason to fail."""
    running.run(fake_run.config, fake_run.folder.path, like=tmp_path / "nowhere")
    assert {"start", "analysis", "search"} <= set(fake_run.done)


def test_a_failed_cell_is_isolated(fake_run):
    """One cell's failure leaves all others complete and reported; the run ends with an error that names it."""
    fake_run.failures["methods/swat/seed-0"] = RuntimeError("loss is\nnot a number")
    with pytest.raises(RunError, match=r"methods/swat/seed-0 failed: RuntimeError: loss is not a number\n1 of 7 jobs"):
        fake_run.start()
    assert set(fake_run.done) == {"start", "analysis", "search", "report", *CELLS} - {"methods/swat/seed-0"}
    assert fake_run.record.status == "failed"
    assert fake_run.record.stages["methods/swat/seed-0"].error == "RuntimeError: loss is not a number"


def test_a_cell_whose_training_failed_is_told_so(fake_run):
    """A method that takes over another's training fails with it, in its own words; the run ends, and goes on."""
    fake_run.config = check_run_config(
        {"data": "tiny-world", "methods": {"ift": {}, "half": {"method": "ift", "after": ["wise-ft"]}}}
    )
    fake_run.failures["methods/ift/seed-0"] = RunError("disk full")
    with pytest.raises(RunError, match=r"methods/half/seed-0 failed: it needs methods/ift/seed-0, which failed"):
        fake_run.start()
    fake_run.failures.clear()
    fake_run.start()
    assert {"methods/ift/seed-0", "methods/half/seed-0"} <= set(fake_run.done)
    assert fake_run.record.status == "complete"


def test_a_failed_cell_is_tried_again(fake_run):
    """The next start does the failed cell alone, and the run is then complete."""
    fake_run.failures["methods/swat/seed-0"] = RunError("disk full")
    with pytest.raises(RunError, match="disk full"):
        fake_run.start()
    fake_run.failures.clear()
    done_before = len(fake_run.done)
    fake_run.start()
    assert fake_run.done[done_before:] == ["methods/swat/seed-0", "report"]
    assert fake_run.observer.found == (6, 7)
    assert fake_run.record.status == "complete"
    assert fake_run.record.stages["methods/swat/seed-0"].error is None


@pytest.mark.parametrize("stage", ["start", "analysis", "search"])
def test_a_failed_stage_stops_the_run(fake_run, stage):
    """Without start model, analysis or search there is nothing to compare, so its error ends the run as it is."""
    fake_run.failures[stage] = StartModelError("it does not refuse")
    with pytest.raises(StartModelError, match="it does not refuse"):
        fake_run.start()
    assert "report" not in fake_run.done
    assert fake_run.record.status == "failed"
    assert fake_run.record.stages[stage].state == "failed"


def test_an_interrupted_run_goes_on(fake_run):
    """Ctrl-C leaves the jobs under way waiting, and the next start does what is left."""
    fake_run.failures["methods/ift/seed-1"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fake_run.start()
    assert fake_run.record.status == "interrupted"
    assert "running" not in {stage.state for stage in fake_run.record.stages.values()}
    fake_run.failures.clear()
    fake_run.start()
    assert len(fake_run.done) == len(set(fake_run.done)) == 8
    assert fake_run.record.status == "complete"


def test_a_complete_run_is_not_repeated(fake_run):
    """Starting a complete run again only writes the report anew."""
    fake_run.start()
    fake_run.done.clear()
    fake_run.start()
    assert fake_run.done == ["report"]
    assert fake_run.observer.found == (7, 7)


def test_a_result_that_was_removed_is_made_again(fake_run):
    """What needs a removed result waits until it is there again."""
    fake_run.start()
    fake_run.folder.manifest("searched").unlink()
    fake_run.folder.cell_scores("swat", 0).unlink()
    fake_run.done.remove("search")
    fake_run.start()
    assert fake_run.done[-3:] == ["search", "methods/swat/seed-0", "report"]


def test_the_seconds_of_several_starts_add_up(fake_run):
    """The run's wall time is that of all its starts."""
    fake_run.start()
    first = fake_run.record.seconds
    fake_run.start()
    assert fake_run.record.seconds >= first


def test_another_run_in_the_folder_is_refused(fake_run, monkeypatch, tmp_path):
    """The checks come before anything is written."""
    monkeypatch.undo()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other.txt").write_text("")
    with pytest.raises(InputError, match=r"it holds other\.txt"):
        running.run(fake_run.config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["other.txt"]
