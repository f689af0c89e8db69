"""The readable part of a value file's name.

It helps people who look into the folder.  Nothing is ever looked up by it.
"""

from __future__ import annotations


def file_stem(canonical: bytes) -> str:
    """The readable part of a file's name: letters, digits and dashes of the key, at most 40.

    It helps people; nothing is ever looked up by it, and no key can reach another folder with it.
    """
    return canonical[1:41].translate(_READABLE).strip(b"-").decode("ascii") or "key"


def fitting_stem(name: str) -> str:
    """What a user calls a file as the readable part of its name: in no other folder, and of 120
    bytes at most.
    """
    fit = "".join([char if char.isprintable() and char != "/" else "-" for char in name])
    return _cut(fit).strip(".- ") or "key"


def harmless_stem(name: str) -> str:
    """What a catalog calls a file as the readable part of its name, whoever wrote it.

    It leaves as it is what `fitting_stem` made, also with a Python that knew other characters.
    """
    return _cut(name.replace("/", "-").replace("\0", "-"))


def _cut(name: str) -> str:
    return name.encode("utf-8", "replace")[:120].decode("utf-8", "ignore")


_READABLE = bytes(
    byte if chr(byte).isascii() and (chr(byte).isalnum() or byte == ord("_")) else ord("-")
    for byte in range(256)
)
