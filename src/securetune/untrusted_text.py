"""Model output is untrusted text: it must not move the cursor, hide words or reverse the reading order."""

from __future__ import annotations

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
