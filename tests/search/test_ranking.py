from search_cases import make_report

from securetune.artifacts import ModuleRobustness
from securetune.config import SearchSettings
from securetune.search import rank_modules
from securetune.search.ranking import make_units


def _order(accuracies: dict[str, float], falls: dict[str, float] | None = None) -> list[str]:
    report = make_report(accuracies, falls or {})
    return [f"{module.layer}.{module.type}" for module in rank_modules(report)]


def test_accuracy_decides_first_and_the_margin_second():
    """A smaller fall of the margin only counts between modules of the same accuracy."""
    order = _order({"0.V": 0.9, "1.V": 0.8, "0.O": 0.9}, {"0.V": 3.0, "1.V": 0.0, "0.O": 2.0})
    assert order == ["0.O", "0.V", "1.V"]


def test_ties_go_by_the_papers_patterns():
    """Deeper layers first (pattern A), and within a layer Q and K last (pattern B)."""
    order = _order(dict.fromkeys(("0.Q", "0.V", "1.Q", "1.K", "1.V", "1.Up"), 1.0))
    assert order == ["1.V", "1.Up", "1.Q", "1.K", "0.V", "0.Q"]


def test_the_closed_form_can_give_the_order_instead():
    """Then the smallest expected shift comes first, whatever the sampled accuracy."""
    report = make_report({"0.V": 1.0, "1.V": 0.5}, {}, shifts={"0.V": 4.0, "1.V": 2.0})
    assert [module.layer for module in rank_modules(report, "closed-form")] == [1, 0]


def test_modules_that_share_a_parameter_are_one_unit():
    """A part of a weight cannot be trained apart; the unit stands where its parts stand on average."""
    ranked = [
        ModuleRobustness(**{**module.model_dump(), "name": name})
        for module, name in zip(
            make_report(dict.fromkeys(("0.Q", "0.O", "0.K", "1.Q", "1.K"), 1.0), {}).modules,
            ("0.qkv[Q]", "0.o", "0.qkv[K]", "1.qkv[Q]", "1.qkv[K]"),
            strict=True,
        )
    ]
    units = make_units(ranked, SearchSettings())
    assert units == [("0.qkv[Q]", "0.qkv[K]"), ("0.o",), ("1.qkv[Q]", "1.qkv[K]")]
    blocks = make_units(ranked, SearchSettings(unit="block", block_layers=2))
    assert {frozenset(unit) for unit in blocks} == {frozenset({"0.o"}), frozenset(m.name for m in ranked) - {"0.o"}}
