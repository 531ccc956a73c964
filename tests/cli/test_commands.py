"""The command line as a whole: which commands there are, how fast they answer, and how they fail."""

import json
import resource
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from securetune import __version__
from securetune.cli import app
from securetune.cli import run as run_module
from securetune.cli.application import _show_warning
from securetune.cli.demo import demo_config, describe_modules
from securetune.cli.output import printable
from securetune.config import parse_overrides
from securetune.config.presets import list_presets

FLAGS = {
    "demo": {"--out", "--seeds", "--controls", "--json"},
    "plan": {"--method", "--model", "--data", "--modules", "--set", "--json"},
    "run": {"--out", "--set", "--json"},
    "analyze": {"--out", "--harmful", "--harmless", "--perturbation", "--data", "--set", "--json"},
    "search": {"--out", "--harmful", "--harmless", "--study", "--set", "--json"},
    "protect": {"--out", "--modules", "--set", "--json"},
    "train": {"--out", "--method", "--model", "--data", "--modules", "--set", "--json"},
    "merge": {"--out", "--dtype", "--json"},
    "patch": {
        "--with",
        "--out",
        "--start",
        "--aligned",
        "--base",
        "--unaligned",
        "--strength",
        "--threshold",
        "--top-k",
        "--projector",
        "--energy",
        "--drop",
        "--seed",
        "--json",
    },
    "export": {"--to", "--out", "--model", "--tune", "--method", "--set", "--json"},
    "evaluate": {"--out", "--suite", "--judge", "--task", "--utility", "--backend", "--endpoint", "--set", "--json"},
    "judge": {"--judge", "--suite", "--only", "--set", "--json"},
    "compare": {"--json", "--out"},
    "experiment": {"--out", "--set", "--json"},
    "gate": {"--start", "--config", "--set", "--out", "--json"},
    "report": {"--json"},
    "ls": {"--json"},
    "tiny-world build": {"--out", "--seed", "--json"},
}


def commands():
    """Return every command by the words that call it."""
    group = get_command(app)
    found = dict(group.commands)
    found |= {f"tiny-world {name}": command for name, command in found.pop("tiny-world").commands.items()}
    return found


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_and_their_flags():
    """These are the commands, with these flags and no others."""
    flags = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        - {"--help"}
        for name, command in commands().items()
    }
    assert flags == FLAGS


@pytest.mark.parametrize("name", FLAGS)
def test_help_says_what_a_command_does(name):
    """Each command has a help text, and each of its options too."""
    command = commands()[name]
    assert command.help
    assert all(parameter.help for parameter in command.params)
    result = invoke(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_help_loads_no_heavy_library():
    """The command line is imported without torch, transformers or pydantic, which would make every `--help` slow."""
    heavy = {"torch", "transformers", "trl", "peft", "sklearn", "matplotlib", "numpy", "pydantic", "datasets"}
    code = "import sys, securetune.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "securetune" in loaded
    assert not heavy & set(loaded)


@pytest.mark.parametrize("name", ["demo", "train"])
def test_help_takes_less_than_half_a_second(name):
    """Help takes less than half a second of processor time, whatever else the machine is doing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "securetune", name, "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_version():
    """`--version` prints the package's version."""
    assert invoke("--version").stdout.strip() == f"securetune {__version__}"


def test_a_mistake_in_a_flag_is_one_clear_error():
    """An unknown flag ends with status 2 and is named on stderr."""
    result = invoke("demo", "--sedes", "3")
    assert result.exit_code == 2
    assert "--sedes" in result.stderr
    assert result.stdout == ""


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path):
    """An interrupted command ends with status 130 and one line with the command that goes on."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: tiny-world\n")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["securetune.cli.run"], "do_run", interrupted)
    monkeypatch.setattr(sys, "argv", ["securetune", "run", "my recipe.yaml", "--out", "runs/a"])
    result = invoke("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.strip().endswith("To go on: securetune run 'my recipe.yaml' --out runs/a")
    assert run_module is not None


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    """An exception that nobody raised on purpose is not dressed up as a mistake of the user's."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: tiny-world\n")

    def broken(*arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(sys.modules["securetune.cli.run"], "do_run", broken)
    assert isinstance(invoke("run", recipe, "--out", tmp_path / "out").exception, ZeroDivisionError)


@pytest.mark.parametrize("what", ["models", "methods", "presets", "defenses", "suites", "tasks", "attacks", "judges"])
def test_ls_lists_what_is_registered(what):
    """Each list comes from its registry, as lines for people and as one JSON document for programs."""
    from securetune.defenses import list_defenses
    from securetune.evaluation import list_attacks, list_judges, list_suites, list_tasks
    from securetune.models import list_models

    registries = {
        "models": list_models,
        "methods": lambda: [each for each in list_defenses() if each.stage == "training"],
        "presets": list_presets,
        "defenses": list_defenses,
        "suites": list_suites,
        "tasks": list_tasks,
        "attacks": list_attacks,
        "judges": list_judges,
    }
    registered = registries[what]()
    rows = json.loads(invoke("ls", what, "--json").stdout)
    assert [row["name"] for row in rows] == [item.name for item in registered]
    assert all(row["description"] for row in rows)
    lines = invoke("ls", what).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows]


def test_ls_suites_shows_kind_counts_licence_and_source():
    """A line says what a person needs before using a suite, and the JSON row has its version and every count."""
    lines = {line.split()[0]: line for line in invoke("ls", "suites").stdout.splitlines()}
    for part in ("harmful", "110, full 520", "MIT", "arXiv 2307.15043", "https://github.com/llm-attacks"):
        assert part in lines["advbench"]
    rows = {row["name"]: row for row in json.loads(invoke("ls", "suites", "--json").stdout)}
    assert rows["advbench"]["prompts"] == {"protocol": 110, "full": 520}
    assert rows["advbench"]["version"] == "advbench@protocol/1"
    assert (rows["xstest"]["kind"], rows["sap30"]["wrapper"]) == ("harmless", "sap")


def test_ls_of_something_else_is_refused():
    """An unknown list is refused with the known ones."""
    result = invoke("ls", "datasets")
    assert result.exit_code == 2
    assert "models" in result.stderr


def test_model_text_cannot_drive_the_terminal():
    """Escape sequences, line breaks and direction overrides in a model's answer are taken out before it is printed."""
    assert printable("a\x1b[31mb\u202ec\nd\x00") == "a[31mbc d"


def test_warnings_are_one_line(capsys):
    """A warning is one line on stderr, without the place in the code."""
    _show_warning(UserWarning("two prompts repeat"), UserWarning, "file.py", 3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: two prompts repeat\n")


class TestDemoRecipe:
    """The recipe of the demo."""

    def test_seeds(self):
        """`--seeds N` takes the seeds from 0."""
        assert demo_config(2, controls=False).seeds == (0, 1)

    def test_methods(self):
        """The demo compares plain fine-tuning, both methods, and the control that warms up the least robust modules."""
        config = demo_config(3, controls=False)
        assert list(config.methods) == ["ift", "ml-lr", "swat", "swat-sensitive"]
        swat, control = config.training_for("swat", 0), config.training_for("swat-sensitive", 0)
        assert control == swat.model_copy(update={"modules": "sensitive"})

    def test_controls(self):
        """`--controls` adds a random set, and every method again with embeddings, norms and head frozen."""
        config = demo_config(1, controls=True)
        plain = ["ift", "ml-lr", "swat", "swat-sensitive", "swat-random"]
        assert list(config.methods) == [*plain, *(f"{label}-frozen-embeddings" for label in plain)]
        assert config.training_for("swat-random", 0).modules == "random"
        for label in plain:
            frozen = config.training_for(f"{label}-frozen-embeddings", 0)
            assert frozen == config.training_for(label, 0).model_copy(update={"other_parameters": "frozen"})

    def test_modules_are_named_by_type(self, manifest):
        """The chosen modules are gathered by type, with the reason for the choice."""
        text = describe_modules(manifest)
        assert "Chosen as robust: 3 modules with 40% of the projections' weights" in text
        assert text.endswith("They are: Up of layers 1, 3; O of layers 2.")
        assert "95.0% of the harmful prompts (intact: 99.0%)" in text


@pytest.fixture
def manifest():
    from securetune.artifacts import ModelIdentity, RobustModules, SelectedModule

    identity = ModelIdentity(
        name="m",
        revision=None,
        architecture="LlamaForCausalLM",
        parameter_count=9,
        weights_fingerprint="w",
        chat_template_hash="t",
    )
    chosen = [("Up", 1), ("O", 2), ("Up", 3)]
    return RobustModules(
        model=identity,
        prompt_set_hash="p",
        selection="searched",
        settings={},
        modules=[
            SelectedModule(name=f"{kind}.{layer}", type=kind, layer=layer, parameter_count=1, robustness_rank=rank)
            for rank, (kind, layer) in enumerate(chosen)
        ],
        parameter_fraction=0.4,
        joint_accuracy=0.95,
        intact_accuracy=0.99,
    )


def test_overrides_are_read_as_yaml():
    """`--set` values have YAML's types."""
    assert parse_overrides(["a.b=true", "a.c=null", "d=x"]) == {"a": {"b": True, "c": None}, "d": "x"}
