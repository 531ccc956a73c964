"""Bad input: each mistake is one clear line on stderr, several at once, before any expensive work; exit status 2."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from securetune import models
from securetune.artifacts import RobustModules, SelectedModule, write_json
from securetune.cli import app
from securetune.data.built_in_probes import built_in_prompts

NOTHING = Path("nowhere")


class Files:
    """Good files and bad ones, made once."""

    def __init__(self, folder, model):
        self.folder = folder
        self.model = model
        self.identity = models.load(str(model)).identity
        self.out = folder / "out"
        self.harmful = self.text("harmful.txt", "".join(f"how do i steal a {n}\n" for n in "abcdefghijkl"))
        self.harmless = self.text("harmless.txt", "".join(f"how do i wash a {n}\n" for n in "abcdefghijkl"))
        self.again = self.text("again.txt", self.harmful.read_text().upper())
        self.data = self.text("data.jsonl", json.dumps({"prompt": "how", "completion": "sure"}) + "\n")

    def text(self, name, content):
        path = self.folder / name
        path.write_text(content)
        return path

    def model_without(self, name):
        """Copy the model and leave one file out."""
        copy = self.folder / f"without-{name}"
        shutil.copytree(self.model, copy, ignore=lambda *_: {name}, dirs_exist_ok=True)
        return copy

    def manifest(self, **changes):
        """Write a manifest for this model, or for one that differs from it."""
        module = models.map_modules(models.load(str(self.model)).model)[0]
        chosen = SelectedModule(
            name=module.name, type=module.type, layer=0, parameter_count=module.parameter_count, robustness_rank=0
        )
        path = self.folder / f"manifest-{'-'.join(changes) or 'good'}.json"
        manifest = RobustModules(
            model=self.identity.model_copy(update=changes),
            prompt_set_hash="p",
            selection="searched",
            settings={},
            modules=[chosen],
            parameter_fraction=0.1,
            joint_accuracy=1.0,
            intact_accuracy=1.0,
        )
        write_json(path, manifest)
        return path

    def recipe(self, text):
        return self.text("recipe.yaml", text)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_model_dir):
    return Files(tmp_path_factory.mktemp("files"), tiny_model_dir)


def _without_template(files):
    model = files.model_without("chat_template.jinja")
    return ["evaluate", model, "--out", files.out, "--suite", files.harmful]


def _without_tokenizer(files):
    return ["evaluate", files.model_without("tokenizer.json"), "--out", files.out, "--suite", files.harmful]


def _without_projections(files):
    model = files.folder / "falcon"
    shutil.copytree(files.model, model, dirs_exist_ok=True)
    config = {"model_type": "falcon", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    config |= {"vocab_size": 64, "architectures": ["FalconForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    return ["analyze", model, "--out", files.out, "--harmful", files.harmful, "--harmless", files.harmless]


def _train(files, *more, data=None):
    base = ["train", "--out", files.out, "--model", files.model, "--data", data or files.data, "--method", "ift"]
    return [*base, *more]


CASES = {
    "no such model": (
        lambda f: ["evaluate", NOTHING, "--out", f.out, "--suite", f.harmful],
        "nowhere.*no such model folder",
    ),
    "no tokenizer": (_without_tokenizer, "no tokenizer"),
    "no chat template": (_without_template, "no chat template"),
    "no projections": (_without_projections, r"falcon: FalconForCausalLM: .*is not registered.*query_key_value"),
    "data file missing": (lambda f: _train(f, data=NOTHING), "nowhere: no such data file"),
    "data file empty": (lambda f: _train(f, data=f.text("empty.jsonl", "")), r"empty\.jsonl: .*(empty|no )"),
    "data not JSON lines": (lambda f: _train(f, data=f.text("prose.jsonl", "hello\n")), r"prose\.jsonl.*row 1"),
    "rows without fields": (
        lambda f: _train(f, data=f.text("rows.jsonl", f.data.read_text() + '{"question": "how"}\n')),
        r"rows\.jsonl.*row 2",
    ),
    "unknown key": (
        lambda f: ["run", f.recipe("data: tiny-world\ntraining: {max_step: 5}\n"), "--out", f.out],
        r'recipe\.yaml: training\.max_step: unknown key\. Did you mean "max_steps"\?',
    ),
    "unknown key in --set": (
        lambda f: _train(f, "--set", "training.max_step=5"),
        r'training\.max_step: unknown key\. Did you mean "max_steps"\?',
    ),
    "value out of range": (
        lambda f: _train(f, "--set", "training.learning_rate_ratio=3"),
        r"training\.learning_rate_ratio must be less than or equal to 1; got 3",
    ),
    "recipe missing": (lambda f: ["run", "nowhere.yaml", "--out", f.out], r"nowhere\.yaml: no such file"),
    "unknown method": (lambda f: _train(f, "--method", "swatt"), 'method "swatt" is unknown.*"swat"'),
    "unknown schedule": (lambda f: _train(f, "--set", "training.lr_scheduler_type=cosin"), 'Did you mean "cosine"'),
    "method needs a manifest": (lambda f: _train(f, "--method", "swat"), "needs the robust modules"),
    "manifest missing": (
        lambda f: _train(f, "--method", "swat", "--modules", "nowhere.json"),
        r"nowhere\.json: no such file",
    ),
    "manifest of another kind": (
        lambda f: _train(f, "--method", "swat", "--modules", f.text("other.json", "{}")),
        r'other\.json: must be a file of format "securetune\.robust_modules/1"',
    ),
    "manifest for another model": (
        lambda f: _train(f, "--method", "swat", "--modules", f.manifest(weights_fingerprint="other")),
        "weights differ",
    ),
    "manifest for another template": (
        lambda f: _train(f, "--method", "swat", "--modules", f.manifest(chat_template_hash="other")),
        "another chat template",
    ),
    "data set without a name": (
        lambda f: ["analyze", f.model, "--out", f.out, "--harmful", "hub:x", "--harmless", f.harmless],
        "hub:x: a data set on the hub must be named owner/name",
    ),
    "half of the probes": (
        lambda f: ["analyze", f.model, "--out", f.out, "--harmful", f.harmful],
        "--harmless is missing",
    ),
    "too few probes": (
        lambda f: ["analyze", f.model, "--out", f.out, "--harmful", f.harmful, "--harmless", f.text("one.txt", "a\n")],
        r"one\.txt: 1 different prompts",
    ),
    "probes that overlap": (
        lambda f: ["analyze", f.model, "--out", f.out, "--harmful", f.harmful, "--harmless", f.harmful],
        r"the harmful prompts \(.*harmful\.txt\) and the harmless prompts \(.*\) must not overlap; 12 of 12 do",
    ),
    "suites that overlap": (
        lambda f: ["evaluate", f.model, "--out", f.out, "--suite", f.harmful, "--suite", f"harmless:{f.again}"],
        "the harmful suite harmful and the harmless suite again must not overlap; 12 of 12 do",
    ),
    "analysis missing": (lambda f: ["search", "nowhere.json", "--out", f.out], r"nowhere\.json: no such file"),
    "unknown attack": (
        lambda f: ["evaluate", "tiny-world", "--out", f.out, "--suite", "tiny-world-harmful+prefil"],
        'attack "prefil" does not exist. Did you mean "prefill"?',
    ),
    "suite without its file": (
        lambda f: ["evaluate", "tiny-world", "--out", f.out, "--suite", f"advbench={f.harmful}x"],
        "Get it from https://github.com/llm-attacks/llm-attacks",
    ),
    "unknown suite": (
        lambda f: ["evaluate", "tiny-world", "--out", f.out, "--suite", "tiny-world-harmfull"],
        '"tiny-world-harmful"',
    ),
    "unknown judge": (
        lambda f: ["evaluate", f.model, "--out", f.out, "--suite", f.harmful, "--judge", "keyword-qi"],
        '"keywords-qi"',
    ),
    "nothing to evaluate": (lambda f: ["evaluate", f.model, "--out", f.out], "--suite FILE, --task TASK or --utility"),
    "broken task": (
        lambda f: ["evaluate", f.model, "--out", f.out, "--task", f.text("task.jsonl", '{"prompt": "a"}\n')],
        r"task\.jsonl: row 1: `answer` must be a text; got none",
    ),
    "task that no number answers": (
        lambda f: [
            "evaluate",
            f.model,
            "--out",
            f.out,
            "--task",
            "numeric:" + str(f.text("n.jsonl", '{"prompt": "a", "answer": "b"}\n')),
        ],
        r"n\.jsonl: row 1: `answer` must be one number",
    ),
    "utility of another form": (
        lambda f: ["evaluate", f.model, "--out", f.out, "--utility", "gsm8k"],
        r"evaluation\.utility must be lm-eval:TASK",
    ),
    "no such run folder": (lambda f: ["report", NOTHING], "nowhere: no such run folder"),
    "out is a file": (lambda f: _train(f, "--out", f.text("taken", "")), "must be a folder; got a file"),
    "--set without a value": (lambda f: _train(f, "--set", "training.max_steps"), "--set must be KEY.PATH=VALUE"),
}


@pytest.mark.parametrize(("command", "sentence"), CASES.values(), ids=CASES)
def test_bad_input(files, command, sentence, monkeypatch):
    """The mistake is named on stderr, in a line that begins with "error:", with status 2 and nothing on stdout."""
    monkeypatch.chdir(files.folder)
    result = CliRunner().invoke(app, [str(argument) for argument in command(files)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors
    assert any(re.search(sentence, line) for line in errors), result.stderr
    assert "Traceback" not in result.stderr
    assert not files.out.exists()


def test_several_mistakes_at_once(files, monkeypatch):
    """Model, data, probes, suites, judges, methods and output folder are all checked before the run gives up."""
    monkeypatch.chdir(files.folder)
    taken = files.folder / "taken-folder"
    taken.mkdir()
    (taken / "notes.txt").write_text("")
    recipe = files.recipe(
        "model: {name: nowhere}\n"
        "data: missing.jsonl\n"
        "probes: {harmful: absent.txt, harmless: harmless.txt}\n"
        "methods: {ift: {search: {seed: 3}}, swat: {modules: gone.json}, typo: {}}\n"
        "evaluation: {suites: [nothing.txt], judges: [nobody]}\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(taken)])
    assert result.exit_code == 2
    assert result.stdout == ""
    for part in (
        "error: nowhere",
        "missing.jsonl: no such data file",
        "absent.txt: no such file",
        "methods.ift: search: does nothing, as no modules are searched for it",
        "methods.swat: gone.json: no such file",
        'methods.typo: method "typo" is unknown',
        "nothing.txt",
        "nobody",
        "notes.txt",
    ):
        lines = [line for line in result.stderr.splitlines() if part in line]
        assert len(lines) == 1, part
        assert lines[0].startswith("error: ")
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


def test_a_run_with_the_manifest_of_another_model(files, monkeypatch):
    """A manifest that a recipe names is held against the model with the other checks, before the run begins."""
    monkeypatch.chdir(files.folder)
    recipe = files.recipe(
        f"model: {{name: {files.model}}}\n"
        "data: data.jsonl\n"
        "probes: {harmful: harmful.txt, harmless: harmless.txt}\n"
        f"methods: {{ift: {{}}, swat: {{modules: {files.manifest(weights_fingerprint='x').name}}}}}\n"
        "evaluation: {suites: [missing.txt]}\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(files.out)])
    assert result.exit_code == 2
    assert "error: methods.swat: manifest-weights_fingerprint.json: was made for" in result.stderr
    assert "missing.txt" in result.stderr
    assert not files.out.exists()


def test_probes_in_a_test_suite(files, monkeypatch):
    """A prompt that chooses the modules must not judge the result."""
    monkeypatch.chdir(files.folder)
    recipe = files.recipe(
        f"model: {{name: {files.model}}}\n"
        "data: data.jsonl\n"
        "probes: {harmful: harmful.txt, harmless: harmless.txt}\n"
        "evaluation: {suites: [harmful.txt]}\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(files.out)])
    assert result.exit_code == 2
    sentence = "error: the harmful probes (harmful.txt) and the suite harmful must not overlap; 12 of 12 do, such as"
    assert sentence in result.stderr


def test_probes_in_a_test_suite_beside_other_mistakes(files, monkeypatch):
    """The overlap is told although another suite cannot be read, and names the harmless file if it is that one."""
    monkeypatch.chdir(files.folder)
    recipe = files.recipe(
        f"model: {{name: {files.model}}}\n"
        "data: missing.jsonl\n"
        "probes: {harmful: harmful.txt, harmless: harmless.txt}\n"
        "evaluation: {suites: [missing.txt, 'harmless:harmless.txt']}\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(files.out)])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert errors[2].startswith("error: the harmless probes (harmless.txt) and the suite harmless must not overlap")


def test_built_in_probes_in_a_test_suite(files, monkeypatch):
    """A file that repeats built-in probes cannot test a model whose modules were chosen by them."""
    monkeypatch.chdir(files.folder)
    copied = [prompt.text for prompt in built_in_prompts("searching", "harmful")[:3]]
    files.text("copied.txt", "\n".join(copied))
    recipe = files.recipe(
        f"model: {{name: {files.model}}}\ndata: data.jsonl\nevaluation: {{suites: [copied.txt, probes-harmful]}}\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(files.out)])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the harmful probes (built in) and the suite copied must not overlap; 3 of 3 do" in errors[0]
