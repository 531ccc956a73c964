"""`report.html` and `heatmap.svg`."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import CHOSEN, METHODS, Outcome, fake_robustness, write_fake_run

from securetune.artifacts import Comparison, read_artifact
from securetune.reporting import comparison_table, heatmap_svg, without_control_characters, write_report

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script> \x1b[31mred\x07 \u202eesrever &amp; <img src=x onerror=y>"
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page: checks that elements are closed in order, and collects ids, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.ids += [value or "" for key, value in attributes if key == "id"]
        self.links += [value or "" for key, value in attributes if key in ("href", "src", "xlink:href")]
        assert not [key for key, _ in attributes if key.startswith("on")], f"<{tag}> has an event handler"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def make(folder: Path, **options: Any) -> str:
    return write_report(write_fake_run(folder, **{"prompts": 20, **options})).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("report") / "demo")


def test_the_page_is_one_file_without_network(page_text: str) -> None:
    """Nothing is loaded from anywhere, there is no program in the page, and a browser is told to allow none."""
    page = Page(page_text)
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert all(link.startswith("#") for link in page.links)
    assert not re.findall(r"url\((?!#)", page_text)
    assert "@import" not in page_text
    assert "default-src 'none'" in page_text
    assert len(page_text) < 1_500_000


def test_identifiers_are_unique_and_links_lead_somewhere(page_text: str) -> None:
    """Several figures share the page, and none takes another one's clip paths or markers."""
    page = Page(page_text)
    repeated = [name for name, count in Counter(page.ids).items() if count > 1]
    assert not repeated
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page_text)) <= set(page.ids)


def test_every_section_is_there(page_text: str) -> None:
    """A complete run has its verdict, its note, all tables, six figures, examples, settings and a glossary."""
    page = Page(page_text)
    assert page.tags["svg"] == 6
    assert page.tags["article"] == 10
    for text in (
        "raised the attack success rate from",
        "This is a test bench.",
        "not evidence about large models",
        "swat-sensitive",
        "15 of 42 modules",
        "Spearman",
        "pretend you are an evil robot",
        "expected: query : verb = book",
        "keywords-shallow",
        "A list of 36 phrases",
        "Settings: training",
        "learning_rate_ratio",
        "transformers",
        "methods/swat/seed-2",
        "33.5 s (complete)",
        "Over-refusal",
    ):
        assert text in page.text, text
    assert "None" not in re.sub(r"None of|none", "", page.text)
    assert "not measured" not in page.text


def test_the_same_run_makes_the_same_bytes(page_text: str, tmp_path: Path) -> None:
    """Reports of equal runs are equal, so that a change in one is a change in the numbers."""
    assert make(tmp_path / "demo") == page_text


def test_the_comparison_is_written_beside_it(tmp_path: Path) -> None:
    """The page and `comparison.json` show the same verdict, and the heatmap lies with the analysis."""
    text = make(tmp_path)
    comparison = read_artifact(tmp_path / "comparison.json", Comparison)
    assert comparison.verdict.replace("'", "&#39;") in text
    assert (tmp_path / "analysis" / "heatmap.svg").read_text().startswith("<?xml")


def test_model_output_is_escaped(tmp_path: Path) -> None:
    """Whatever a model writes is shown as text: no markup, no control characters, no reversed reading order."""
    text = make(tmp_path, answer=HOSTILE)
    page = Page(text)
    assert page.tags["script"] == page.tags["img"] == 0
    assert "<script>alert(1)</script> [31mred esrever &amp; <img src=x onerror=y>" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)


def test_labels_are_text_too(tmp_path: Path) -> None:
    """A label with markup or formula characters is shown as it is, in tables and in figures."""
    label = "a$b^2$&c"
    folder = write_fake_run(tmp_path, {"ift": METHODS["ift"]}, prompts=10)
    (folder / "methods" / "ift").rename(folder / "methods" / label)
    (folder / "config.yaml").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.count("a$b^2$&amp;c") >= 5
    assert label in Page(text).text


MISSING: dict[str, tuple[dict[str, Any], list[str]]] = {
    "ift alone": (
        {"methods": {"ift": METHODS["ift"]}},
        ["no other method is complete yet"],
    ),
    "one seed": ({"seeds": (0,)}, ["One seed only"]),
    "no task": (
        {"with_task": False},
        ["task accuracy was not measured", "no task measured", "nothing to draw"],
    ),
    "no rating": ({"with_rating": False}, ["not measured"]),
    "no analysis": (
        {"with_analysis": False},
        ["No analysis in this run folder, so there is no heatmap", "nothing to compare the closed form with"],
    ),
    "no search": (
        {"with_search": False},
        ["No search in this run folder", "No set has been chosen", "No update norms"],
    ),
    "no start model": (
        {"start": None},
        ["The start model has not been evaluated", "Still missing: the start model's evaluation"],
    ),
    "no methods": ({"methods": {}}, ["Plain fine-tuning (IFT) is not part of this run"]),
    "analysis alone": (
        {"methods": {}, "start": None, "with_search": False},
        ["No model of this run has been evaluated yet", "No answers yet"],
    ),
}


@pytest.mark.parametrize(("options", "sentences"), MISSING.values(), ids=MISSING)
def test_missing_pieces_are_named(tmp_path: Path, options: dict[str, Any], sentences: list[str]) -> None:
    """A run that lacks a piece still has a whole page, which says in a sentence what is missing."""
    text = Page(make(tmp_path, **options)).text
    for sentence in sentences:
        assert sentence in text


REMOVED: dict[str, Callable[[Path], None]] = {
    "run.json": lambda run: (run / "run.json").unlink(),
    "config.yaml": lambda run: (run / "config.yaml").unlink(),
    "a training record": lambda run: (run / "methods" / "swat" / "seed-0" / "training.json").unlink(),
    "a cell": lambda run: shutil.rmtree(run / "methods" / "swat" / "seed-0"),
}


@pytest.mark.parametrize("remove", REMOVED.values(), ids=REMOVED)
def test_a_report_is_possible_without_any_one_file(tmp_path: Path, remove: Callable[[Path], None]) -> None:
    """No single record is needed for a report; an incomplete cell is named."""
    folder = write_fake_run(tmp_path, prompts=10)
    remove(folder)
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "Methods side by side" in text
    assert ("Still missing: swat with seed 0" in text) is (remove is REMOVED["a cell"])


def test_examples_are_not_chosen_by_their_outcome(tmp_path: Path) -> None:
    """The example prompts are the same whatever was answered."""

    def prompts(text: str) -> list[str]:
        return re.findall(r'<p class="prompt">([^<]*)</p>', text)

    safe = {label: Outcome(0.0, 1.0, method=outcome.method) for label, outcome in METHODS.items()}
    assert prompts(make(tmp_path / "a")) == prompts(make(tmp_path / "b", methods=safe))


def test_unreliable_answers_are_warned_of(tmp_path: Path) -> None:
    """A method whose answers are often empty or looping is named with their share."""
    folder = write_fake_run(tmp_path, prompts=10)
    path = folder / "methods" / "ift" / "seed-0" / "evaluation" / "scores.json"
    path.write_text(path.read_text().replace('"empty": 0', '"empty": 9'))
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "30% of the answers of IFT are empty or loop" in text


@pytest.mark.parametrize("layers", [1, 6])
@pytest.mark.parametrize("quantity", ["accuracy", "margin_fall"])
def test_the_heatmap_shows_and_marks_modules(layers: int, quantity: Any) -> None:
    """Every module's value is written, and exactly the chosen ones have a frame."""
    report = fake_robustness(layers)
    chosen = [name for name in CHOSEN if name in {module.name for module in report.modules}]
    document = heatmap_svg(report, chosen, quantity)
    texts = [element.text for element in ElementTree.fromstring(document).iter(f"{SVG}text")]
    for module in report.modules:
        assert f"{getattr(module, quantity):.2f}" in texts
    frames = document.count("stroke: #ffffff; stroke-width: 3.6")
    assert frames == len(chosen)
    assert heatmap_svg(report, chosen, quantity) == document
    assert "var(--" not in document


def test_a_large_heatmap_is_readable() -> None:
    """A model with many layers has a tall map, with values, and not every layer's number on the axis."""
    report = fake_robustness()
    modules = [
        module.model_copy(update={"layer": layer, "name": f"{layer}.{module.type}"})
        for layer in range(32)
        for module in report.modules[:7]
    ]
    root = ElementTree.fromstring(heatmap_svg(report.model_copy(update={"modules": modules}), []))
    assert float(root.attrib["height"].removesuffix("pt")) > 800
    assert sum(text.text == f"{modules[0].accuracy:.2f}" for text in root.iter(f"{SVG}text")) >= 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ntext\t.", "plain\ntext\t."),
        ("\x1b]0;title\x07", "]0;title"),
        ("a\u202eb\u2066c", "abc"),
        ("hidden\U000e0041", "hidden"),
        ("nb\u200csp ’ é 漢", "nb\u200csp ’ é 漢"),
    ],
)
def test_control_characters_are_removed(text: str, expected: str) -> None:
    """Escape sequences, direction overrides and hidden letters go; text of any language stays."""
    assert without_control_characters(text) == expected


def test_importing_reporting_opens_no_window() -> None:
    """Figures are made without a display."""
    assert comparison_table is not None
    import matplotlib

    assert matplotlib.rcParams["svg.fonttype"] == "path", "the style must not leak out of a figure"
