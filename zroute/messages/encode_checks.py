"""Check messages against their declared type before a publisher encodes them.

The engines encode any object, even if its type differs from the annotation. A subscriber would then refuse the message
or receive another value. With these checks, the error is raised where the mistake was made: in the publisher.
"""

from __future__ import annotations

import datetime
import decimal
import types
import typing
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence, Set
from enum import Enum
from typing import Any, Literal, Union, cast, get_args, get_origin

import attrs

from zroute.codegen import make_lambda
from zroute.messages.constraints import compile_constraint
from zroute.messages.decode_checks import HIGHEST, LOWEST, SMALL
from zroute.messages.schema import ARRAYS, LEAVES, MAPS, children, is_class, is_pydantic, limits, resolved

__all__ = ["conforms", "misfit"]

Test = Callable[[Any], bool]

_READ_AS: Mapping[Any, type] = {
    Sequence: list,
    MutableSequence: list,
    Set: set,
    Mapping: dict,
    MutableMapping: dict,
}
"""The concrete type that a subscriber receives for each abstract type."""


def conforms(hint: Any, *, allow_nan: bool = False) -> Test:
    """Return a function that checks whether a value would arrive unchanged.

    The function returns True if a subscriber that decodes the message as ``hint`` receives a value of the same types.
    All numbers must also be in the range of their type. For any other value, the function returns False or raises an
    exception. PEP 484 allows an int where a float is declared; such an int passes if it is exactly representable as a
    float. Values of undeclared types, and of types that the app registers, always pass.

    Args:
        hint: the type.
        allow_nan: True if floats and Decimals may be NaN or infinite.
    """
    return _Tests(allow_nan).of(hint)


def misfit(hint: Any, value: Any, path: str = "", *, allow_nan: bool = False) -> tuple[str, Any, Any]:
    """Return the path, expected type and value of the first part that does not fit.

    Args:
        hint: the type of the whole value.
        value: a value that `conforms` has refused.
        path: the path of ``value`` in the message, such as ``.legs[2]``.
        allow_nan: see `conforms`.
    """
    bare = resolved(hint)
    for step, child, item in _parts(bare, value):
        if not _holds(conforms(child, allow_nan=allow_nan), item):
            return misfit(child, item, path + step, allow_nan=allow_nan)
    return path, hint, value


def _parts(bare: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the parts of a class instance, list or map: path step, type and value.

    Yield nothing if ``value`` is not an instance of ``bare``.
    """
    origin, kinds = get_origin(bare) or bare, list(children(bare))
    if is_class(origin) and type(value) is origin:
        yield from ((step, child, getattr(value, step[1:], attrs.NOTHING)) for step, child in kinds)
    elif is_class(origin) and typing.is_typeddict(origin) and type(value) is dict:
        yield from ((step, child, value[step[1:]]) for step, child in kinds if step[1:] in value)
    elif origin in MAPS and type(value) is dict:
        yield from ((f"[{key!r:.40}]", kinds[1][1], item) for key, item in value.items())
    elif origin in ARRAYS and len(kinds) == 1 and type(value) in (list, tuple):
        yield from ((f"[{number}]", kinds[0][1], item) for number, item in enumerate(value))


def _holds(test: Test, value: Any) -> bool:
    try:
        return test(value)
    except Exception:
        return False


def _is_whole(value: Any) -> bool:
    return value.__class__ is int and float(value) == value


def _in_minutes(value: Any) -> bool:
    """Return True if the UTC offset is a whole number of minutes.

    Messages carry UTC offsets as hours and minutes (RFC 3339). Some historical offsets also have seconds, which would
    be lost.
    """
    offset = value.utcoffset()
    return not offset or not offset % datetime.timedelta(minutes=1)


# {v} is the source of the value, {n} the name of a variable for the value.
_LEAF_TESTS: Mapping[Any, str] = {
    int: f"({{n}} := {{v}}).__class__ is int and ({-SMALL} < {{n}} < {SMALL} or {LOWEST} <= {{n}} <= {HIGHEST})",
    float: "(({n} := {v}).__class__ is float and {n} - {n} == 0.0 or is_whole({n}))",
    decimal.Decimal: "({n} := {v}).__class__ is kind{n} and {n}.is_finite()",
    datetime.datetime: "({n} := {v}).__class__ is kind{n} and in_minutes({n})",
    datetime.time: "({n} := {v}).__class__ is kind{n} and in_minutes({n})",
}

_WITH_NAN: Mapping[Any, str] = {
    float: "(({n} := {v}).__class__ is float or is_whole({n}))",
    decimal.Decimal: "{v}.__class__ is kind{n}",
}


class _Tests:
    """A compiler of checks, with one check per type.

    The check of a class is a single expression, which runs before each message is sent. The expression takes half the
    time of a loop over the fields.
    """

    def __init__(self, allow_nan: bool) -> None:
        self._leaves = {**_LEAF_TESTS, **_WITH_NAN} if allow_nan else dict(_LEAF_TESTS)
        self._made: dict[Any, Test] = {}

    def of(self, hint: Any) -> Test:
        if is_pydantic(hint):
            return lambda value: True  # pydantic makes its own checks
        bare, parts = resolved(hint), limits(hint)
        test = self._bare(bare)
        if not parts:
            return test
        meets = compile_constraint(bare, parts)
        return lambda value: meets(value) and test(value)

    def _bare(self, hint: Any) -> Test:
        if hint in self._made:
            return self._made[hint]
        self._made[hint] = lambda value: self._made[hint](value)  # for recursive types, which refer to their own check
        self._made[hint] = test = self._make(hint, get_origin(hint) or hint, get_args(hint))
        return test

    def _make(self, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> Test:
        if hint in LEAVES:
            return self._compiled([self._term(hint, "m", "v", names := self._names())], names)
        if origin is Literal:
            known = {(type(value), value) for value in arguments}
            return lambda value: (type(value), value) in known
        if origin in (Union, types.UnionType):
            tests = [self.of(argument) for argument in arguments]
            return lambda value: any(_holds(test, value) for test in tests)
        if isinstance(origin, type) and issubclass(origin, Enum):
            return lambda value: isinstance(value, origin)
        if is_class(origin):
            return self._typed_dict(hint, origin) if typing.is_typeddict(origin) else self._class(hint, origin)
        if origin in ARRAYS + MAPS and hint is not origin:
            return self._container(_READ_AS.get(origin, origin), arguments)
        return lambda value: True

    def _class(self, hint: Any, origin: Any) -> Test:
        names = self._names(kind=origin)
        # With `symbol: str` and `bid: float`, these terms follow: m.symbol.__class__ is kindv0,
        # ((v1 := m.bid).__class__ is float and v1 - v1 == 0.0 or is_whole(v1)).
        terms = ["m.__class__ is kind"]
        terms += [
            self._term(child, f"m{step}", f"v{number}", names) for number, (step, child) in enumerate(children(hint))
        ]
        return self._compiled(terms, names)

    def _term(self, hint: Any, value: str, name: str, names: dict[str, Any]) -> str:
        bare = resolved(hint)
        if bare in LEAVES and not limits(hint):
            names[f"kind{name}"] = bare
            return self._leaves.get(bare, "{v}.__class__ is kind{n}").format(v=value, n=name)
        names[f"test{name}"] = self.of(hint)
        return f"test{name}({value})"

    @staticmethod
    def _names(**more: Any) -> dict[str, Any]:
        return {"is_whole": _is_whole, "in_minutes": _in_minutes, **more}

    @staticmethod
    def _compiled(terms: list[str], names: dict[str, Any]) -> Test:
        expression = " and ".join(terms)
        test: Any = make_lambda(expression, names)
        test.expression = (expression, names)  # a larger generated function can inline it, which saves a call
        return cast("Test", test)

    def _typed_dict(self, hint: Any, origin: Any) -> Test:
        hints = {step[1:]: child for step, child in children(hint)}
        tests = {name: self.of(child) for name, child in hints.items()}
        # __required_keys__ alone is not enough: it ignores NotRequired in annotations that are strings.
        required = {name for name in hints if name in origin.__required_keys__}
        required -= {name for name, child in hints.items() if get_origin(child) is typing.NotRequired}
        required |= {name for name, child in hints.items() if get_origin(child) is typing.Required}
        return lambda value: (
            type(value) is dict
            and required <= value.keys() <= tests.keys()
            and all(tests[name](item) for name, item in value.items())
        )

    def _container(self, kind: Any, arguments: tuple[Any, ...]) -> Test:
        tests = [self.of(argument) for argument in arguments if argument is not ...]
        if kind is tuple and ... not in arguments:
            return lambda value: (
                type(value) is tuple
                and len(value) == len(tests)
                and all(test(item) for test, item in zip(tests, value, strict=True))
            )
        of_items, of_values = tests[0], tests[-1]
        if kind is dict:
            return lambda value: (
                type(value) is dict and all(map(of_items, value)) and all(map(of_values, value.values()))
            )
        return lambda value: type(value) is kind and all(map(of_items, value))
