"""What a reader must look at beside the engines, compiled per type: integers and floats.

Integers over 64 bits are refused (msgspec's JSON accepts them into ``int``), and floats that are not finite
(msgpack carries them). Only what a type can hold is looked at.
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
"""What msgpack can carry: a signed or an unsigned integer of 64 bits."""

SMALL = 2**30 - 1
"""One digit of CPython's integers. With these bounds before the others a field takes 20 ns, not 60: most are small."""


def compile_check(hint: Any, *, ints: bool, floats: bool) -> Check | None:
    """A function that says whether a value of type ``hint`` may pass, or None where nothing can be wrong.

    The value is known to be of the type; only the bounds of ``ints`` and ``floats`` are in question.
    """
    holds = inspect(hint).holds
    wanted = {name for name, on in (("int", ints), ("float", floats)) if on}
    if "any" in holds:
        return is_bounded if ints or floats else None
    return _Compiler(ints, floats).check(hint) if wanted & holds else None


def compile_reader(decode: Decode, hint: Any, *, utf8: bool, ints: bool, floats: bool) -> Decode:
    """``decode`` with what must be looked at beside it, in one function: it stands before most handlers.

    ``utf8``: msgspec skips the fields a class does not have unread, but JSON is UTF-8 all through (RFC 8259,
    8.1). Where nothing is to be looked at, ``decode`` itself. The function raises DecodeError.
    """
    names: dict[str, Any]
    if is_class(get_origin(hint) or hint) and "any" not in inspect(hint).holds:
        expression, names = _Compiler(ints, floats).expression(get_origin(hint) or hint, hint)
    else:
        check = compile_check(hint, ints=ints, floats=floats)
        expression, names = ("check(m)", {"check": check}) if check else ("", {})
    if not expression and not utf8:
        return decode
    # A function of its own for each type, as attrs and cattrs make them: one call a message less.
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
    """The lines of a reader, which turn ``body`` into ``m``, and the names that they use.

    Whoever writes a function around a reader can put them in it, and save the call.
    """

    lines: tuple[str, ...]
    names: Mapping[str, Any]


def _out_of_bounds() -> None:
    raise DecodeError("a number over 64 bits or not finite")


def is_bounded(value: Any) -> bool:
    """Whether every number in ``value``, whatever it is, is a 64-bit integer or a finite float."""
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
    """Whether ``expression`` is true of each ``m``: a third of the time of a call for each."""
    source = f"def check(value):\n    for m in value:\n        if not ({expression}): return False\n    return True"
    check: Check = define(source, "check", names)
    return check


class _Compiler:
    """Makes one expression a class, so that a flat one is checked in one call; recursive types use `is_bounded`."""

    def __init__(self, ints: bool, floats: bool) -> None:
        self._ints, self._floats = ints, floats
        self._open: list[Any] = []

    def check(self, hint: Any) -> Check | None:
        hint = resolved(hint)
        origin, arguments = get_origin(hint) or hint, get_args(hint)
        if hint is int:
            return (lambda value: LOWEST <= value <= HIGHEST) if self._ints else None
        if hint is float:
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
        return is_bounded if self._ints or self._floats else None

    def _class(self, kind: Any, hint: Any) -> Check | None:
        expression, names = self.expression(kind, hint)
        if not expression:
            return None
        # One expression instead of a loop over fields: half the time, and this runs for each message.
        check: Any = make_lambda(expression, names)
        check.expression = (expression, names)
        return cast("Check", check)

    def expression(self, kind: Any, hint: Any) -> tuple[str, dict[str, Any]]:
        """What must be true of an instance ``m`` of a class, as source, and the names it uses; "" for nothing."""
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
