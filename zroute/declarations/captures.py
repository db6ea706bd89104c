"""Conversion of captured topic segments to the declared parameter types."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin
from uuid import UUID

from zroute.errors import SignatureError
from zroute.messages.constraints import compile_constraint
from zroute.messages.schema import describe, limits, resolved

__all__ = ["Converter", "converter_of", "hashable"]

Converter = Callable[[bytes], Any]
"""A function that converts a segment to an argument. It raises ValueError for a segment that can't be converted."""

# Stricter than int() and float(), which also accept "1_000", " 1" and "nan".
_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?")  # a decimal point, unless the dot is the separator


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
    number = float(text)
    if math.isinf(number):  # such as 1e400
        raise ValueError(text)
    return number


def _canonical(read: Callable[[str], Any], write: Callable[[Any], str]) -> Converter:
    """Return a converter that accepts only the form that publishers write.

    Python's parsers accept many other forms: braces around a UUID, a date without hyphens, any character between date
    and time.
    """

    def convert(segment: bytes) -> Any:
        text = segment.decode()
        value = read(text)
        if write(value) != text:
            raise ValueError(text)
        return value

    return convert


def _one_of(by_text: Mapping[bytes, Any]) -> Converter:
    def convert(segment: bytes) -> Any:
        try:
            return by_text[segment]
        except KeyError:
            raise ValueError(segment) from None

    return convert


_CONVERTERS: Mapping[Any, Converter] = {
    Any: _text,
    str: _text,
    int: _integer,
    float: _number,
    bool: _one_of({b"true": True, b"false": False}),
    UUID: _canonical(UUID, str),
    datetime.date: _canonical(datetime.date.fromisoformat, datetime.date.isoformat),
    datetime.datetime: _canonical(datetime.datetime.fromisoformat, datetime.datetime.isoformat),
}


def converter_of(hint: Any, name: str, where: str) -> Converter:
    """Return the converter from a segment to an argument of type ``hint``.

    An enum and a Literal are looked up by the text of their values. A bool is ``true`` or ``false``. A float is finite.
    A UUID, date or datetime has the form that publishers write: ``str()`` of a UUID, ``isoformat()`` of the others. If
    a dot separates segments, no time has fractions of a second, and no float a decimal point. If the type has a
    constraint, such as ``Annotated[int, Meta(gt=0)]``, the converter refuses values that do not meet the constraint.

    Raises:
        SignatureError: ``hint`` is not str, int, float, bool, UUID, date, datetime, a Literal, an enum or Any.
    """
    kind = resolved(hint)
    if isinstance(kind, type) and issubclass(kind, Enum):
        convert: Converter | None = _one_of({str(member.value).encode(): member for member in kind})
    elif get_origin(kind) is Literal and all(type(value) in (str, int) for value in get_args(kind)):
        convert = _one_of({str(value).encode(): value for value in get_args(kind)})
    else:
        convert = _CONVERTERS.get(kind) if hashable(kind) else None
    if convert is None:
        raise SignatureError(
            f"capture {name!r} can't be converted to {describe(hint)}: annotate the parameter as str, int, float, "
            "bool, UUID, date, datetime, a Literal of str and int values, or an enum",
            parameter=name,
            where=where,
        )
    try:
        parts = limits(hint)
        return _constrained(convert, compile_constraint(kind, parts)) if parts else convert
    except ValueError as error:
        raise SignatureError(f"capture {name!r} {error}", parameter=name, where=where) from error


def _constrained(convert: Converter, meets: Callable[[Any], bool]) -> Converter:
    def checked(segment: bytes) -> Any:
        value = convert(segment)
        try:
            met = meets(value)
        except Exception as error:
            raise ValueError(str(error)) from None
        if not met:
            raise ValueError(segment)
        return value

    return checked


def hashable(hint: Any) -> bool:
    """Return True if ``hint`` can be looked up in a dict."""
    try:
        hash(hint)
    except TypeError:
        return False
    return True
