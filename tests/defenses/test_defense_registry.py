"""The registry of defenses."""

from collections.abc import Iterator

import pytest

from securetune.defenses import Defense, find_defense, list_defenses, register_defense, registry
from securetune.errors import ConfigError


@pytest.fixture(autouse=True)
def unchanged_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    return


def test_the_three_methods_are_found_by_folder() -> None:
    """Every defense folder registers itself when the package is imported."""
    assert {"ift", "ml-lr", "swat"} <= {description.name for description in list_defenses()}


def test_list_says_what_a_user_must_know() -> None:
    """The list gives each method's need for a manifest, its sentence and its source."""
    found = {description.name: description for description in list_defenses()}
    assert not found["ift"].needs_manifest
    assert found["ml-lr"].needs_manifest
    assert found["swat"].needs_manifest
    for description in found.values():
        assert description.summary.endswith(".")
        assert description.source
    assert {found[name].stage for name in ("ift", "ml-lr", "swat")} == {"training"}


def test_a_name_is_taken_once() -> None:
    """A second defense of the same name is refused, and the message says who has it and who wants it."""

    @register_defense("brand-new")
    class First(Defense):
        """First."""

    with pytest.raises(ValueError, match=r'"brand-new" is registered already, by .*First.*got .*Second'):

        @register_defense("brand-new")
        class Second(Defense):
            """Second."""

    assert isinstance(find_defense("brand-new"), First)
    assert find_defense("brand-new").name == "brand-new"


def test_only_defenses_can_register() -> None:
    """Something that is no defense is refused."""
    with pytest.raises(TypeError, match=r"(?s)Defense.*dict|dict.*Defense"):
        register_defense("dict")(dict)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("mllr", 'Did you mean "ml-lr"'),
        (
            "zzz",
            "Methods: asft, freeze-rest, guardspace, ift, l2-sp, lisa, low-lr, ml-lr, protected-subspace, safegrad, ",
        ),
    ],
)
def test_unknown_method(typed: str, hint: str) -> None:
    """An unknown method is an error that gives the nearest name, or all of them."""
    with pytest.raises(ConfigError, match=f'method "{typed}" is unknown. {hint}'):
        find_defense(typed)
