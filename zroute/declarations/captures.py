"""Conversion of captured topic segments to the declared parameter types."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any
from uuid import UUID

from zroute.errors import SignatureError

__all__ = ["Converter", "converter_of", "hashable"]

Converter = Callable[[bytes], Any]
"""Converts a segment to an argument. Raises ValueError if the segment is not a value of the type."""

# Stricter than int() and float(), which also accept "1_000", " 1" and "nan".
_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+([eE][-+]?[0-9]+)?")  # no decimal point: the dot separates segments


def _text(segment: bytes) -> str:
    return segment.decode()


def _integer(segment: bytes) -> int:
    text = segment.decode()
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _number(segment: bytes) -> float:
    text = segment.decode()
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


def _uuid(segment: bytes) -> UUID:
    return UUID(segment.decode())


_CONVERTERS: Mapping[Any, Converter] = {Any: _text, str: _text, int: _integer, float: _number, UUID: _uuid}


def converter_of(hint: Any, name: str, where: str) -> Converter:
    """Return the converter from a segment to an argument of type ``hint``.

    An enum is looked up by the text of its values.

    Raises:
        SignatureError: ``hint`` is none of str, int, float, UUID, an enum or Any.
    """
    if isinstance(hint, type) and issubclass(hint, Enum):
        by_text = {str(member.value).encode(): member for member in hint}
        return lambda segment: _member(by_text, segment)
    converter = _CONVERTERS.get(hint) if hashable(hint) else None
    if converter is None:
        raise SignatureError(
            f"capture {name!r} can't be converted to {getattr(hint, '__name__', hint)}: "
            "annotate it as str, int, float, UUID or an enum",
            parameter=name,
            where=where,
        )
    return converter


def _member(by_text: Mapping[bytes, Enum], segment: bytes) -> Enum:
    try:
        return by_text[segment]
    except KeyError:
        raise ValueError(segment) from None


def hashable(hint: Any) -> bool:
    """Return True if ``hint`` can be looked up in a dict."""
    try:
        hash(hint)
    except TypeError:
        return False
    return True
