"""What an export shows to other programs beside the arrays: attributes, and the chest's codec."""

from __future__ import annotations

from typing import Any

from arraychest.arrays.compressed import CompressedArray
from arraychest.engine.face import Face
from arraychest.formats.frame import CODEC_NAMES

# A dict of more scalars is shown to nobody but a chest.
_MOST_ATTRIBUTES = 100


def described(chest: Face, key: Any) -> dict[str, Any]:
    """What other programs are shown of a value without arrays; nothing if it is too much."""
    value = chest.get(key)
    shown = value if type(value) is dict else {"value": value}
    plain = all(
        type(name) is str and name and isinstance(each, str | bool | int | float)
        for name, each in shown.items()
    )
    return shown if plain and len(shown) <= _MOST_ATTRIBUTES else {}


def codec_of(chest: Face, key: Any, value: Any) -> str | None:
    """How the chest compresses a value: a codec's name, None, or ``"auto"``."""
    if type(value) is CompressedArray:
        return chest.entry(key).codec
    how = chest._engine.session.options.compression.how
    if isinstance(how, str):
        return None if how == "never" else "auto"
    return CODEC_NAMES.get(how.codec, "auto")
