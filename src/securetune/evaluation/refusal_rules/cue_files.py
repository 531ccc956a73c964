"""The patterns and word lists of `refusal-rules`, compiled from the files beside this one.

The files are read once, when the judge is used first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

WORDS_BETWEEN = r"(?: [\w',-]+){0,%s}?"
"""What `~3` stands for in a pattern: up to three words, as few as possible."""


@cache
def pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of a cue in `cues.yaml`: any of the alternatives in its list."""
    return re.compile("|".join(_expanded(alternative) for alternative in _read_yaml("cues.yaml")[name]))


@cache
def words(name: str) -> re.Pattern[str]:
    """Return a pattern that matches each word of a list in `words.yaml`."""
    listed = sorted(set(_read_yaml("words.yaml")[name].split()), key=len, reverse=True)
    return re.compile(rf"\b(?:{_alternatives(listed)})\b")


@cache
def request_pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of a cue in `request.yaml`: whole words in any case; openings only at the start."""
    if name == "signs":
        return re.compile("|".join(_read_yaml("request.yaml")[name]), re.IGNORECASE)
    where = r"^\W*" if name in ("directions", "fact", "yes_or_no") else r"(?<!\w)"
    return re.compile(rf"{where}(?:{'|'.join(_read_yaml('request.yaml')[name])})(?!\w)", re.IGNORECASE)


@cache
def act() -> re.Pattern[str]:
    """Return a pattern for an imperative and what it acts on ("take the lid"), unless somebody else does it."""
    objects = (
        r"(?:the|a|an|it|them|your|one|two|three|four|five|every|each|some|its|his|her|\d+"
        r"|in|on|at|up|down|off|out|from|under|with)"
    )
    return re.compile(rf"(?<!to )(?<!not )(?<!i )(?<!we )(?<!they )\b{_act_verbs()} {objects}\b")


@cache
def weights() -> dict[str, dict[str, float]]:
    """Return the weights of the cues, by what they decide on."""
    return json.loads(_text("weights.json"))


def _expanded(alternative: str) -> str:
    for name, parts in _read_yaml("cues.yaml")["parts"].items():
        alternative = alternative.replace(f"<{name}>", f"(?:{'|'.join(parts)})")
    alternative = alternative.replace("<act>", _act_verbs())
    return re.sub(r"~(\d+)", lambda most: WORDS_BETWEEN % most[1], alternative)


@cache
def _act_verbs() -> str:
    return f"(?:{_alternatives(_read_yaml('words.yaml')['act'].split())}|tell (?:them|him|her)|look for)"


def _alternatives(listed: Sequence[str]) -> str:
    return "|".join(re.escape(word).replace(r"\*", r"\w*") for word in listed)


@cache
def _read_yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load(_text(name))


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
