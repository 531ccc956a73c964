"""What the documents say is true: tables come from the code, and every path and command that they name exists."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import securetune
from securetune.cli import app
from securetune.defenses import find_data_defense, find_defense, find_generation_defense, list_defenses

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def load_program(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tree_paths():
    """Return the paths of the README's file tree."""
    block = README.split("## Where things are")[1].split("```")[1]
    paths, above = [], ""
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            above = name if name.startswith("src/") else ""
        paths.append(above + name if line.startswith(" ") else name)
    return paths


def tracked_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return [path for path in listed.stdout.decode().splitlines() if (ROOT / path).is_file()]


def test_tables_are_generated():
    """The tables of every document are what `make docs` writes, and each table is in one of them."""
    program = load_program(ROOT / "docs" / "generated_tables.py")
    texts = [document.read_text(encoding="utf-8") for document in program.DOCUMENTS]
    assert [program.with_generated_tables(text) for text in texts] == texts
    assert sum(text.count("<!-- generated: ") for text in texts) == len(program.TABLES)


def test_the_file_tree_is_complete():
    """Each path of the tree exists, and nothing of the package is missing from it."""
    paths = tree_paths()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    package = ROOT / "src" / "securetune"
    parts = {f"src/securetune/{path.name}/" for path in package.iterdir() if path.is_dir()}
    modules = {f"src/securetune/{path.name}" for path in package.glob("*.py") if not path.name.startswith("__")}
    assert {part for part in parts if "__pycache__" not in part} | modules == {
        path for path in paths if path.startswith("src/securetune/") and path != "src/securetune/"
    }


def test_every_command_in_the_readme_exists():
    """Each `securetune …` line names a command, and its flags belong to that command."""
    commands = get_command(app).commands
    lines = re.findall(r"^securetune (.+?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        name, *words = line.split()
        flags = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= flags, line


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_exists(document):
    """Each `make …` that a document names is a target."""
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8")))
    used = {name for name in named if name in TARGETS or re.search(rf"(`|^)make {name}", README, re.MULTILINE)}
    assert used
    assert used <= TARGETS


def test_ci_runs_what_people_run():
    """CI is `make lint` and `make test`, and both are targets."""
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert commands == ["make lint", "make test"]
    assert {"setup", "demo", "test", "test-long", "lint", "bench"} <= TARGETS


def test_python_examples_in_the_readme_compile():
    """The README's Python names things that exist."""
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        compile(example, "README.md", "exec")
        named = re.findall(r"securetune\.(\w+)\(", example)
        imported = re.findall(r"^from securetune import (.*)$", example, re.MULTILINE)
        named += [name for names in imported for name in names.split(", ")]
        assert named
        assert set(named) <= set(securetune.__all__)


def test_public_functions_are_found():
    """Each public name is imported from its home on first use, and an unknown one is an AttributeError."""
    for name in securetune.__all__:
        assert getattr(securetune, name) is not None
    assert set(securetune.__all__) <= set(dir(securetune))
    with pytest.raises(AttributeError, match="has no attribute 'analyse'"):
        _ = securetune.analyse


def test_the_lock_names_exact_versions_only():
    """The lock holds one exact version a line: no hosts, no paths, no local version suffix."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    locked = {line.partition("==")[0].lower().replace("_", "-") for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.match(r"[A-Za-z0-9._-]+", name)[0].lower().replace("_", "-") for name in wanted} <= locked


def test_the_type_checking_hook_covers_every_package():
    """The import hook covers each package but `cli`, so that a new one is not forgotten."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    hooked = set(re.search(r"--jaxtyping-packages=(\S+)", options)[1].split(",")) - {"beartype.beartype"}
    package = ROOT / "src" / "securetune"
    packages = {f"securetune.{path.parent.name}" for path in package.glob("*/__init__.py")}
    assert hooked == packages - {"securetune.cli"}


def test_no_machine_paths():
    """No tracked text file holds a path or a host of somebody's machine."""
    pattern = re.compile(rb"(^|[^\w.])/(home|root|Users|work|tmp)/\w|index-" + rb"url|find-" + rb"links")
    texts = [path for path in tracked_files() if not path.endswith((".safetensors", ".lock"))]
    assert len(texts) > 50
    assert [path for path in texts if pattern.search((ROOT / path).read_bytes())] == []


def test_every_yaml_opens_with_the_command_that_runs_it():
    """The first line of a recipe is its command, and that names the file itself."""
    recipes = sorted({*(ROOT / "configs").glob("*.yaml")} - {ROOT / "configs" / "gate.yaml"})  # which is no recipe
    assert recipes
    for path in recipes:
        first = path.read_text().splitlines()[0]
        assert first == f"# securetune run configs/{path.name} --out runs/{path.stem}"
        assert yaml.safe_load(path.read_text())["data"]


def test_every_test_says_what_it_promises():
    """Each test of this suite begins with one sentence."""
    import ast

    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []


def test_the_results_are_those_of_the_committed_experiments():
    """docs/results.md is what its program writes from the files under results/, with a figure for each of them."""
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "docs" / "results_page.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.PAGE.read_text(encoding="utf-8") == program.results_page()
    for folder in sorted(path.parent for path in program.RESULTS.glob("*/experiment.json")):
        assert (folder / "config.yaml").is_file()
        assert (program.FIGURES / f"{folder.name}.svg").read_bytes() == (folder / "frontier.svg").read_bytes()


def test_every_method_is_described_with_its_options():
    """docs/defenses.md has a row for each defense but those on weights, with its options and their defaults."""
    rows = [
        line for line in (ROOT / "docs" / "defenses.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    found = {"data": find_data_defense, "training": find_defense, "generation": find_generation_defense}
    stages = {each.name: each.stage for each in list_defenses() if each.stage in found}
    methods = list(stages)
    assert [row.split("`")[1] for row in rows if "`" in row] == sorted(methods, key=_order_of(rows))
    for name in methods:
        (row,) = [row for row in rows if row.startswith(f"| `{name}` |")]
        required = {"base": "tiny-world-base"} if name == "asft" else {}
        for option, field in found[stages[name]](name, required).options_type.model_fields.items():
            if field.is_required():
                shown = f"`{option}` (required)"
            else:
                shown = f"`{option}`" if field.default is None else f"`{option}` ({_shown(field.default)})"
            assert shown in row, (name, shown)


def _order_of(rows):
    return lambda name: next(place for place, row in enumerate(rows) if row.startswith(f"| `{name}` |"))


def _shown(default):
    return f"`{default}`" if isinstance(default, str) else f"{default:g}"
