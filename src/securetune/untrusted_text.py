"""Model output is untrusted text: it must not move the cursor, hide words or reverse the reading order."""

from __future__ import annotations

import json
import unicodedata

_KEPT = "\n\t"
_DIRECTION = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
_TAGS = range(0xE0000, 0xE0080)  # invisible copies of ASCII, in which text can be hidden


def without_control_characters(text: str) -> str:
    r"""Remove control characters (with them the start of every terminal escape sequence) and direction overrides.

    HTML escaping is not done here: the template engine does it for every value.

    Example:
        >>> without_control_characters("a\x1b[31mb\u202ec")
        'a[31mbc'
    """
    return "".join(character for character in text if character in _KEPT or not _is_harmful(character))


def _is_harmful(character: str) -> bool:
    code = ord(character)
    is_control = unicodedata.category(character) in ("Cc", "Cs")  # control characters, lone surrogates
    return is_control or code in _DIRECTION or code in _TAGS


def escaped_in_json(text: str) -> str:
    r"""Write such characters inside a JSON text as escapes: it means the same, and a terminal that shows it is safe.

    Example:
        >>> print(escaped_in_json('{"answer": "a\u202eb"}'))
        {"answer": "a\u202eb"}
    """
    if text.isascii() and "\x7f" not in text:  # JSON has escaped the other control characters
        return text
    return "".join(_escaped(character) if _must_be_escaped(character) else character for character in text)


def _must_be_escaped(character: str) -> bool:
    return character >= "\x7f" and _is_harmful(character)


def _escaped(character: str) -> str:
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
