"""Compile, for each type, the checks of decoded messages that the engines omit.

Three kinds of numbers must not reach a handler:

- integers of more than 64 bits: msgspec's JSON decoder accepts them for ``int``, but msgpack can't carry them;
- floats that are not finite: msgpack carries them, but JSON can't;
- Decimals that are not finite: both formats carry them as text, but a program that forbids such floats does not expect
  such Decimals.

A compiled check inspects only the parts of a message whose type can contain such a number.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Union, cast, get_args, get_origin

from zroute.codegen import Inline, define, make_lambda
from zroute.errors import DecodeError
from zroute.messages.extras import NO_EXTRAS, Extras
from zroute.messages.schema import children, fields_of, inspect, is_class, resolved

__all__ = [
    "HIGHEST",
    "LOWEST",
    "PLAIN_READ",
    "SMALL",
    "Check",
    "are_64_bits",
    "compile_check",
    "compile_reader",
    "is_bounded",
    "make_reader",
]

Check = Callable[[Any], bool]
Decode = Callable[[bytes], Any]

LOWEST = -(2**63)
HIGHEST = 2**64 - 1
"""The smallest and largest integer that msgpack can represent: 64 bits, signed or unsigned."""

SMALL = 2**30 - 1
"""The limit for integers that CPython stores in one digit.

A first comparison with this limit saves 40 of 60 ns for most integers.
"""


def compile_check(
    hint: Any, *, ints: bool, floats: bool, decimals: bool = False, extras: Extras = NO_EXTRAS
) -> Check | None:
    """Return a function that checks the numbers of a value, or None.

    The function returns True if all numbers are allowed. The result is None if no value of this type can contain a
    forbidden number.

    Args:
        hint: the type; the value is known to be an instance of it.
        ints: True to check that integers have at most 64 bits.
        floats: True to check that floats are finite.
        decimals: True to check that Decimals are finite.
        extras: the types that the app registers. Their values are not checked.
    """
    holds = inspect(hint, extras).holds
    wanted = {name for name, on in (("int", ints), ("float", floats), ("decimal", decimals)) if on}
    if "any" in holds:
        return (is_bounded if floats or decimals else are_64_bits) if wanted else None
    return _Compiler(ints, floats, decimals).check(hint) if wanted & holds else None


def compile_reader(
    decode: Decode,
    hint: Any,
    *,
    utf8: bool,
    ints: bool,
    floats: bool,
    decimals: bool = False,
    extras: Extras = NO_EXTRAS,
) -> Decode:
    """Return a function that decodes a body and checks the result.

    The returned function does both in one call, because it runs for most messages. A failed check raises DecodeError.
    If the type needs no checks, ``decode`` itself is returned.

    Args:
        decode: the engine's decoder.
        hint: the type of the message.
        utf8: True to check that the whole body is UTF-8, as RFC 8259 (8.1) requires of JSON. msgspec does not check
            fields that the class lacks.
        ints: as in `compile_check`.
        floats: as in `compile_check`.
        decimals: as in `compile_check`.
        extras: as in `compile_check`.
    """
    names: dict[str, Any]
    of_items: str | None = None
    if is_class(get_origin(hint) or hint) and "any" not in inspect(hint, extras).holds:
        expression, names = _Compiler(ints, floats, decimals).expression(get_origin(hint) or hint, hint)
    else:
        check = compile_check(hint, ints=ints, floats=floats, decimals=decimals, extras=extras)
        expression, names = ("check(m)", {"check": check}) if check else ("", {})
        of_items, its_names = getattr(check, "of_items", (None, names))
        names = dict(its_names)
    if not expression and not utf8:
        return decode
    # One generated function per type saves one call per message.
    lines = ["body.isascii() or body.decode()"] if utf8 else []
    lines.append("m = decode(body)")
    if of_items is not None:
        lines += ["items = m", "for m in items:", f"    if not ({of_items}): out_of_bounds()", "m = items"]
    elif expression:
        lines.append(f"if not ({expression}): out_of_bounds()")
    names.update(decode=decode, out_of_bounds=_out_of_bounds)
    return make_reader(lines, names)


PLAIN_READ = Inline(("m = decode(body)",), {})
"""The inline form of any decoder. The function that uses it must define the name ``decode``.

The lines of a decoder decode ``body`` and assign the result to ``m``.
"""


def make_reader(lines: Sequence[str], names: Mapping[str, Any]) -> Decode:
    """Compile lines of source into a function that decodes ``body``.

    The function's attribute ``inline`` holds the lines for use in larger functions.
    """
    read: Any = define("\n    ".join(["def read(body):", *lines, "return m"]), "read", names)
    read.inline = Inline(tuple(lines), names)
    return cast("Decode", read)


def _out_of_bounds() -> None:
    raise DecodeError("a number exceeds 64 bits or is not finite")


_NO_NUMBERS = frozenset({str, bytes, bool, types.NoneType})


def _visitor(*, floats: bool) -> Check:
    """Return a function that checks all numbers in a value of any type.

    Args:
        floats: True to check that floats and Decimals are finite.
    """

    def check(value: Any) -> bool:
        kind = type(value)
        if kind is int:
            return bool(LOWEST <= value <= HIGHEST)
        if kind is float:
            return bool(not floats or value - value == 0.0)
        if kind is Decimal:
            return bool(not floats or value.is_finite())
        if kind in _NO_NUMBERS:
            return True
        if kind is dict:
            return all(map(check, value)) and all(map(check, value.values()))
        if isinstance(value, list | tuple | set | frozenset):
            return all(map(check, value))
        return all(map(check, fields_of(value).values()))

    return check


is_bounded = _visitor(floats=True)
"""Return True if each number in a value is a 64-bit integer, a finite float or a finite Decimal."""

are_64_bits = _visitor(floats=False)
"""Return True if each integer in a value has at most 64 bits. Floats and Decimals may be NaN or infinite."""


def _loop(expression: str, names: dict[str, Any]) -> Check:
    """Return a check that evaluates ``expression`` for each item ``m`` of a value.

    The inlined expression takes a third of the time of one call per item.
    """
    source = f"def check(value):\n    for m in value:\n        if not ({expression}): return False\n    return True"
    check: Any = define(source, "check", names)
    check.of_items = (expression, names)
    return cast("Check", check)


class _Compiler:
    """A compiler that combines the checks of a class into one expression.

    A class without nested classes is checked in one call. In recursive types, each part is checked by a separate call.
    """

    def __init__(self, ints: bool, floats: bool, decimals: bool) -> None:
        self._ints, self._floats, self._decimals = ints, floats, decimals
        self._visit = is_bounded if floats or decimals else are_64_bits
        self._open: list[Any] = []

    def check(self, hint: Any) -> Check | None:
        hint = resolved(hint)
        origin, arguments = get_origin(hint) or hint, get_args(hint)
        if hint is int:
            return (lambda value: LOWEST <= value <= HIGHEST) if self._ints else None
        if hint is float:  # inf - inf and nan - nan are nan, which is not 0.0
            return (lambda value: value - value == 0.0) if self._floats else None
        if hint is Decimal:
            return Decimal.is_finite if self._decimals else None
        if origin in (Union, types.UnionType):
            return self._union(arguments)
        if hint in self._open:
            return self._visit
        if is_class(origin):
            return self._class(origin, hint)
        return self._container(origin, arguments, [self.check(child) for _, child in children(hint)])

    def _union(self, arguments: tuple[Any, ...]) -> Check | None:
        rest = [argument for argument in arguments if argument is not types.NoneType]
        if len(rest) == 1:
            check = self.check(rest[0])
            return check and (lambda value: value is None or check(value))
        # The member of the union is unknown until run time, so check every number in the value.
        return self._visit if self._ints or self._floats or self._decimals else None

    def _class(self, kind: Any, hint: Any) -> Check | None:
        expression, names = self.expression(kind, hint)
        if not expression:
            return None
        # One expression takes half the time of a loop over the fields, and it runs for each message.
        check: Any = make_lambda(expression, names)
        check.expression = (expression, names)
        return cast("Check", check)

    def expression(self, kind: Any, hint: Any) -> tuple[str, dict[str, Any]]:
        """Return the source that checks an instance ``m``, and the names that it uses.

        The source is "" if no check is needed.
        """
        self._open.append(hint)
        terms: list[str] = []
        names: dict[str, Any] = {}
        is_dict = isinstance(kind, type) and issubclass(kind, dict)
        for number, (step, child) in enumerate(children(hint)):
            name, child = step[1:], resolved(child)
            value = f"m[{name!r}]" if is_dict else f"m.{name}"
            check = self.check(child)
            if child is int and check and not is_dict:
                # For a field `volume`: (-1073741823 < m.volume < 1073741823 or {LOWEST} <= m.volume <= {HIGHEST}).
                terms.append(f"({-SMALL} < {value} < {SMALL} or {LOWEST} <= {value} <= {HIGHEST})")
            elif check:
                names[f"check{number}"] = check
                missing = f"{name!r} not in m or " if is_dict else ""
                terms.append(f"({missing}check{number}({value}))")
        self._open.remove(hint)
        return " and ".join(terms), names

    def _container(self, origin: Any, arguments: tuple[Any, ...], checks: list[Check | None]) -> Check | None:
        if not any(checks):
            return None
        if isinstance(origin, type) and issubclass(origin, Mapping):
            of_keys, of_values = checks
            return lambda value: (
                (of_keys is None or all(map(of_keys, value)))
                and (of_values is None or all(map(of_values, value.values())))
            )
        if origin is tuple and ... not in arguments:
            return lambda value: all(check is None or check(item) for check, item in zip(checks, value, strict=False))
        (of_items,) = checks
        assert of_items is not None
        expression = getattr(of_items, "expression", None)
        return _loop(*expression) if expression else lambda value: all(map(of_items, value))
