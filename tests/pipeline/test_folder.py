"""The run folder: it holds one run, and refuses any other."""

import multiprocessing

import pytest
from filelock import FileLock

from securetune.artifacts import RunRecord, read_artifact, write_json
from securetune.config import check_run_config, load_run_config
from securetune.errors import ArtifactError, ConfigError
from securetune.pipeline.folder import (
    RunFolder,
    check_folder,
    hash_inputs,
    locked,
    open_record,
    resolved_config,
)


def recipe(**changes):
    return check_run_config({"data": "tiny-world", "methods": {"ift": {}, "swat": {"max_steps": 5}}, **changes})


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def begin(folder, config):
    check_folder(folder, config)
    return open_record(folder, config, ["start", "report"])


def test_a_new_run_begins_with_its_record_and_config(folder):
    """A new folder gets `run.json` and the resolved configuration, which loads as the same run."""
    begin(folder, recipe())
    assert read_artifact(folder.record, RunRecord).status == "running"
    saved = load_run_config(folder.config)
    assert resolved_config(saved) == resolved_config(recipe())
    check_folder(folder, saved)


def test_the_same_run_goes_on(folder):
    """A second start keeps what is complete, and puts everything else back to waiting."""
    record = begin(folder, recipe())
    record.stages["start"].state, record.stages["start"].seconds = "complete", 3.5
    record.stages["report"].state, record.stages["report"].error = "failed", "disk full"
    write_json(folder.record, record)
    again = begin(folder, recipe())
    assert (again.stages["start"].state, again.stages["start"].seconds) == ("complete", 3.5)
    assert (again.stages["report"].state, again.stages["report"].error) == ("waiting", None)


def test_workers_do_not_make_another_run(folder):
    """The number of processes changes no result, so a run may go on with another one."""
    begin(folder, recipe(workers=2))
    assert begin(folder, recipe(workers=1)).status == "running"


def test_writing_a_setting_where_it_is_inherited_changes_nothing():
    """A run is what its resolved settings are, however the file says it."""
    shared = check_run_config({"data": "d", "training": {"max_steps": 5}, "methods": {"ift": {}}})
    own = check_run_config({"data": "d", "training": {"max_steps": 5}, "methods": {"ift": {"max_steps": 5}}})
    assert resolved_config(shared) == resolved_config(own)


def test_another_configuration_is_refused(folder):
    """Another run's folder is named, with the settings that differ."""
    begin(folder, recipe())
    with pytest.raises(ConfigError, match=r"holds another run \(methods\.swat\.max_steps was 5, is 6\)"):
        check_folder(folder, recipe(methods={"ift": {}, "swat": {"max_steps": 6}}))


def test_changed_input_files_are_refused(folder, tmp_path):
    """A run does not go on with data that changed since it began."""
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    begin(folder, recipe(data=str(data)))
    check_folder(folder, recipe(data=str(data)))
    data.write_text("two")
    with pytest.raises(ConfigError, match="holds a run on other files: data changed"):
        check_folder(folder, recipe(data=str(data)))


def test_every_input_file_is_hashed(tmp_path):
    """Data, probes, suites, task, manifests and the model folder all belong to a run; built-in names have no file."""
    files = {name: tmp_path / name for name in ("d", "harmful", "harmless", "suite", "task", "manifest")}
    for path in files.values():
        path.write_text(path.name)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    config = recipe(
        model={"name": str(model)},
        data=str(files["d"]),
        probes={"harmful": str(files["harmful"]), "harmless": str(files["harmless"])},
        evaluation={"suites": ["tiny-world-harmful", f"harmless:{files['suite']}"], "task": str(files["task"])},
        methods={"swat": {"modules": str(files["manifest"])}},
    )
    before = hash_inputs(config)
    assert set(before) == {
        *("data", "model", "probes.harmful", "probes.harmless"),
        *("evaluation.task", "evaluation.suites.1", "methods.swat.modules"),
    }
    (model / "model.safetensors").write_bytes(b"weights")
    assert hash_inputs(config)["model"] != before["model"]


def test_a_folder_with_other_files_is_refused(folder):
    """A folder that holds anything else is not written into."""
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"must be a new or empty folder.*it holds thesis\.tex"):
        check_folder(folder, recipe())


def test_a_file_in_place_of_the_folder_is_refused(folder):
    """`--out` must be a folder."""
    folder.path.write_text("")
    with pytest.raises(ConfigError, match="must be a folder; got a file"):
        check_folder(folder, recipe())


def test_a_broken_record_is_refused(folder):
    """A `run.json` that cannot be read stops the run instead of being overwritten."""
    folder.path.mkdir()
    folder.record.write_text("{")
    with pytest.raises(ArtifactError, match="not a readable JSON file"):
        check_folder(folder, recipe())


def test_a_kill_before_the_first_file_leaves_an_empty_folder(folder):
    """Lock and half-written files are hidden, so that a run killed in its first moment can be started again."""
    folder.path.mkdir()
    (folder.path / ".lock").touch()
    (folder.path / ".run.json.123.part").touch()
    check_folder(folder, recipe())
    assert begin(folder, recipe()).status == "running"


def hold_lock(path, connection):
    lock = FileLock(path)
    lock.acquire()
    connection.send("locked")
    connection.recv()


def test_two_processes_do_not_share_a_folder(folder):
    """A second start in a folder where one is at work is refused, and allowed when that one has died."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with locked(folder):
        pass
    other = context.Process(target=hold_lock, args=(folder.path / ".lock", theirs))
    other.start()
    assert ours.recv() == "locked"
    with pytest.raises(ConfigError, match="another process is working in it"), locked(folder):
        pass
    other.kill()
    other.join()
    with locked(folder):
        assert folder.path.is_dir()
