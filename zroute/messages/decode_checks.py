"""Checks of decoded messages that the engines do not make, compiled per type.

Two kinds of numbers must not reach a handler:

- integers over 64 bits: msgspec's JSON decoder accepts them for ``int``, but msgpack can't carry them;
- floats that are not finite: msgpack carries them, but JSON can't.

A compiled check looks only at those parts of a message whose type can hold such a number.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, Union, cast, get_args, get_origin

import attrs
import msgspec

from zroute.codegen import define, make_lambda
from zroute.errors import DecodeError
from zroute.messages.schema import children, inspect, is_class, resolved

__all__ = ["HIGHEST", "LOWEST", "SMALL", "Check", "Inline", "compile_check", "compile_reader", "is_bounded"]

Check = Callable[[Any], bool]
Decode = Callable[[bytes], Any]

LOWEST = -(2**63)
HIGHEST = 2**64 - 1
"""The limits of msgpack's integers: 64 bits, signed or unsigned."""

SMALL = 2**30 - 1
"""The largest integer of one digit in CPython. Most integers are small, and this comparison saves 40 of 60 ns."""


def compile_check(hint: Any, *, ints: bool, floats: bool) -> Check | None:
    """Return a function that checks the numbers of a value, or None.

    It returns True if the value may pass. None means that no value of this type can fail.

    Args:
        hint: the type; the value is known to be an instance of it.
        ints: True to check that integers have at most 64 bits.
        floats: True to check that floats are finite.
    """
    holds = inspect(hint).holds
    wanted = {name for name, on in (("int", ints), ("float", floats)) if on}
    if "any" in holds:
        return is_bounded if ints or floats else None
    return _Compiler(ints, floats).check(hint) if wanted & holds else None


def compile_reader(decode: Decode, hint: Any, *, utf8: bool, ints: bool, floats: bool) -> Decode:
    """Return ``decode`` and its checks as one function.

    Most messages pass through this function, so decoding and checks share one call. Without checks, ``decode`` itself
    is returned. The function raises DecodeError if a check fails.

    Args:
        decode: the engine's decoder.
        hint: the type of the message.
        utf8: True to check that the whole body is UTF-8, as RFC 8259 (8.1) requires of JSON. msgspec skips fields that
            the class does not have without such a check.
        ints: as in `compile_check`.
        floats: as in `compile_check`.
    """
    names: dict[str, Any]
    if is_class(get_origin(hint) or hint) and "any" not in inspect(hint).holds:
        expression, names = _Compiler(ints, floats).expression(get_origin(hint) or hint, hint)
    else:
        check = compile_check(hint, ints=ints, floats=floats)
        expression, names = ("check(m)", {"check": check}) if check else ("", {})
    if not expression and not utf8:
        return decode
    # One generated function per type saves one call per message.
    lines = ["body.isascii() or body.decode()"] if utf8 else []
    lines.append("m = decode(body)")
    if expression:
        lines.append(f"if not ({expression}): out_of_bounds()")
    names.update(decode=decode, out_of_bounds=_out_of_bounds)
    read: Any = define("\n    ".join(["def read(body):", *lines, "return m"]), "read", names)
    read.inline = Inline(tuple(lines), names)
    return cast("Decode", read)


@attrs.frozen
class Inline:
    """The source lines of a reader, for use inside a larger generated function.

    The lines turn ``body`` into ``m``. A function that contains them saves the call of the reader.

    Attributes:
        lines: the source, without indentation.
        names: the objects that the lines refer to, by name.
    """

    lines: tuple[str, ...]
    names: Mapping[str, Any]


def _out_of_bounds() -> None:
    raise DecodeError("a number over 64 bits or not finite")


def is_bounded(value: Any) -> bool:
    """Return True if each number in ``value`` is a 64-bit integer or a finite float.

    ``value`` may be of any type; all of its parts are visited.
    """
    kind = type(value)
    if kind is int:
        return bool(LOWEST <= value <= HIGHEST)
    if kind is float:
        return bool(value - value == 0.0)
    if kind is dict:
        return all(map(is_bounded, value)) and all(map(is_bounded, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_bounded, value))
    names = _names(value)
    return all(is_bounded(getattr(value, name)) for name in names)


def _names(value: Any) -> tuple[str, ...]:
    kind = type(value)
    if attrs.has(kind):
        return tuple(field.name for field in attrs.fields(kind))
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    return tuple(getattr(kind, "__dataclass_fields__", ()))


def _loop(expression: str, names: dict[str, Any]) -> Check:
    """Return a check that evaluates ``expression`` for each item ``m``.

    The inlined expression takes a third of the time of one call per item.
    """
    source = f"def check(value):\n    for m in value:\n        if not ({expression}): return False\n    return True"
    check: Check = define(source, "check", names)
    return check


class _Compiler:
    """A compiler that turns the checks of a class into one expression.

    A class without nested classes is checked in one call. Recursive types use `is_bounded`.
    """

    def __init__(self, ints: bool, floats: bool) -> None:
        self._ints, self._floats = ints, floats
        self._open: list[Any] = []

    def check(self, hint: Any) -> Check | None:
        hint = resolved(hint)
        origin, arguments = get_origin(hint) or hint, get_args(hint)
        if hint is int:
            return (lambda value: LOWEST <= value <= HIGHEST) if self._ints else None
        if hint is float:  # inf - inf and nan - nan are nan, which is not 0.0
            return (lambda value: value - value == 0.0) if self._floats else None
        if origin in (Union, types.UnionType):
            return self._union(arguments)
        if hint in self._open:
            return is_bounded
        if is_class(origin):
            return self._class(origin, hint)
        return self._container(origin, arguments, [self.check(child) for _, child in children(hint)])

    def _union(self, arguments: tuple[Any, ...]) -> Check | None:
        rest = [argument for argument in arguments if argument is not types.NoneType]
        if len(rest) == 1:
            check = self.check(rest[0])
            return check and (lambda value: value is None or check(value))
        # The member is unknown until run time, so look at every number in the value.
        return is_bounded if self._ints or self._floats else None

    def _class(self, kind: Any, hint: Any) -> Check | None:
        expression, names = self.expression(kind, hint)
        if not expression:
            return None
        # One expression takes half the time of a loop over the fields, and it runs for each message.
        check: Any = make_lambda(expression, names)
        check.expression = (expression, names)
        return cast("Check", check)

    def expression(self, kind: Any, hint: Any) -> tuple[str, dict[str, Any]]:
        """Return the check of an instance ``m`` as source, and the names that it uses.

        The source is "" if nothing needs a check.
        """
        self._open.append(hint)
        terms: list[str] = []
        names: dict[str, Any] = {"LOWEST": LOWEST, "HIGHEST": HIGHEST}
        is_dict = isinstance(kind, type) and issubclass(kind, dict)
        for number, (step, child) in enumerate(children(hint)):
            name, child = step[1:], resolved(child)
            value = f"m[{name!r}]" if is_dict else f"m.{name}"
            check = self.check(child)
            if child is int and check and not is_dict:
                terms.append(f"({-SMALL} < {value} < {SMALL} or LOWEST <= {value} <= HIGHEST)")
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
