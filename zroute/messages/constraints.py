"""Constraints of values in ``Annotated``, and the functions that check them.

msgspec enforces its own `msgspec.Meta` while it decodes, and ignores all other metadata. This module checks the
constraints of ``annotated_types`` and pydantic, in publishers and subscribers. A constraint that cannot be checked is
an error, because a handler would otherwise receive values that the type forbids. Metadata of other packages only
describes a type, so zroute ignores it.

This module imports neither package, because a program with such metadata has already imported the package.
"""

from __future__ import annotations

import datetime
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence, Set
from decimal import Decimal
from enum import Enum
from itertools import chain
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict
from uuid import UUID

import msgspec

__all__ = ["compile_constraint", "constraints", "is_of_pydantic", "show_constraints"]

Test = Callable[[Any], bool]

# The attributes of msgspec.Meta that restrict values. The others only describe them.
_LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "pattern", "min_length", "max_length", "tz")
# The attributes of pydantic's Field that change a field, and have no effect outside pydantic's own classes.
_FIELD_ONLY = ("alias", "validation_alias", "serialization_alias", "default_factory", "discriminator", "exclude")


def constraints(metadata: Iterable[Any]) -> tuple[Any, ...]:
    """Return the items of ``metadata`` that restrict values.

    A group such as ``Interval`` is replaced by its constraints. Raises ValueError for a constraint that can't be
    checked; the text of the error gives the reason.
    """
    return tuple(_restricting(metadata))


def _restricting(metadata: Iterable[Any]) -> Iterator[Any]:
    known = sys.modules.get("annotated_types")
    for part in metadata:
        if isinstance(part, msgspec.Meta):
            if any(getattr(part, name) is not None for name in _LIMITS):
                yield part
        elif is_of_pydantic(part):
            if type(part).__name__ != "FieldInfo" or _restricts(part):
                yield part
        elif getattr(type(part), "__is_annotated_types_grouped_metadata__", False):
            yield from _restricting(part)
        elif known is not None and isinstance(part, known.BaseMetadata):
            if type(part).__name__ not in _TESTS:
                raise ValueError(f"has the constraint {part!r}, which zroute does not support")
            yield part


def is_of_pydantic(part: Any) -> bool:
    """Return True for metadata of pydantic, such as ``Field(gt=0)``."""
    kind = part if isinstance(part, type) else type(part)
    return kind.__module__.partition(".")[0] in ("pydantic", "pydantic_core") or hasattr(
        kind, "__get_pydantic_core_schema__"
    )


def _restricts(field: Any) -> bool:
    """Return True if a ``Field(…)`` has constraints.

    Raises ValueError if the Field also uses a feature that only works in pydantic classes.
    """
    used = [name for name in _FIELD_ONLY if getattr(field, name, None) is not None]
    if not field.is_required():
        used.append("default")
    if used:
        raise ValueError(f"has a Field with {used[0]}, which only works in pydantic classes")
    return bool(field.metadata)


def show_constraints(parts: Iterable[Any]) -> str:
    """Return the constraints as text for errors, such as ``Gt(gt=0)``."""
    return ", ".join(
        ", ".join(map(repr, part.metadata)) if type(part).__name__ == "FieldInfo" else repr(part) for part in parts
    )


def compile_constraint(kind: Any, parts: Iterable[Any]) -> Test:
    """Return a function that checks a value against all constraints.

    The function returns True if the value meets all constraints. Otherwise it returns False or raises an exception. If
    ``kind`` is a union with None, None always passes.

    Args:
        kind: the type without its metadata. Its nested types are checked elsewhere.
        parts: the result of `constraints`.

    Raises:
        ValueError: a constraint does not fit the type, so no value can be checked. Either a bound can't be compared
            with values of the type, or pydantic does not support the type. The text of the error gives the reason.
    """
    parts = tuple(parts)
    own = [part for part in parts if isinstance(part, msgspec.Meta)]
    of_pydantic = [part for part in parts if not isinstance(part, msgspec.Meta) and is_of_pydantic(part)]
    others = [part for part in parts if part not in own and part not in of_pydantic]
    tests = [_TESTS[type(part).__name__](part) for part in others]
    for part, test in zip(others, tests, strict=True):
        _try(test, kind, (part,))
    origin = get_origin(kind) or kind
    outer = origin if isinstance(origin, type) and origin is not types.UnionType else kind
    if own:
        tests.append(_by_msgspec(Annotated[(outer, *own)], own))
    if of_pydantic:
        tests.append(_by_pydantic(Annotated[(outer, *of_pydantic)]))
        _try(tests[-1], kind, of_pydantic)
    if get_origin(kind) in (Union, types.UnionType) and types.NoneType in get_args(kind):
        return lambda value: value is None or all(test(value) for test in tests)
    return lambda value: all(test(value) for test in tests)


def _by_msgspec(hint: Any, parts: Sequence[Any]) -> Test:
    try:
        msgspec.convert(None, hint)
    except msgspec.ValidationError:  # None is not a value of the type, and the constraints fit the type
        pass
    except Exception as error:  # msgspec would raise this error for every value
        raise _misfit(hint.__origin__, parts, _META) from error

    def test(value: Any) -> bool:
        msgspec.convert(value, hint)  # raises if the value violates a limit
        return True

    return test


def _by_pydantic(hint: Any) -> Test:
    import pydantic

    try:
        adapter = pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True))
    except Exception as error:
        raise ValueError(f"has a constraint that pydantic can't check: {error!s:.200}") from error

    def test(value: Any) -> bool:
        try:
            checked = adapter.validate_python(value)
        except pydantic.ValidationError as error:
            raise ValueError(error.errors(include_url=False)[0]["msg"]) from error
        if type(checked) is not type(value) or checked != value:
            raise ValueError(
                f"pydantic would change the value to {checked!r:.80}, but only pydantic classes may convert values"
            )
        return True

    return test


# -- constraints that can't be checked for any value -----------------------------------------------------

_MOMENT = datetime.datetime(2000, 1, 1)
_SAMPLES: Mapping[Any, tuple[Any, ...]] = {
    bool: (True,),
    int: (1,),
    float: (1.0,),
    Decimal: (Decimal(1),),
    str: ("a",),
    bytes: (b"a",),
    bytearray: (bytearray(b"a"),),
    UUID: (UUID(int=1),),
    datetime.date: (_MOMENT.date(),),
    datetime.datetime: (_MOMENT, _MOMENT.replace(tzinfo=datetime.UTC)),
    datetime.time: (_MOMENT.time(), _MOMENT.time().replace(tzinfo=datetime.UTC)),
    datetime.timedelta: (datetime.timedelta(1),),
    list: ([],),
    tuple: ((),),
    set: (set(),),
    frozenset: (frozenset(),),
    dict: ({},),
    Sequence: ([],),
    MutableSequence: ([],),
    Set: (set(),),
    Mapping: ({},),
    MutableMapping: ({},),
}
_EXPECTED = {
    "MultipleOf": "a number other than 0, for a numeric type",
    "MinLen": "a type with a length",
    "MaxLen": "a type with a length",
    "Timezone": "a datetime or a time",
}
_META = (
    "gt, ge, lt, le or multiple_of for int and float, pattern for str, min_length or max_length for str, bytes and "
    "collections, tz for datetime and time; for other types, constraints of annotated_types"
)
_FUNCTIONS = ("Predicate",)


def _try(test: Test, kind: Any, parts: Sequence[Any]) -> None:
    """Raise ValueError if a constraint does not fit a type.

    An example is ``Gt("a")`` for an int. This function does not call the user's functions, and accepts types without
    sample values.
    """
    inner = [each for part in parts for each in (part.metadata if type(part).__name__ == "FieldInfo" else (part,))]
    names = [type(each).__name__ for each in inner]
    if not all(name in _TESTS and name not in _FUNCTIONS for name in names):
        return
    samples = _samples(kind)
    if not samples and not any(_lacks(kind, each) for each in inner):
        return
    for sample in samples:
        try:
            test(sample)
        except (TypeError, AttributeError, ArithmeticError):
            continue
        except Exception:  # this value violates the constraint; others may meet it
            return
        return
    shown = _shown(kind)
    raise _misfit(kind, parts, _EXPECTED.get(names[0], f"a bound that can be compared with {shown}"))


def _misfit(kind: Any, parts: Sequence[Any], expected: str) -> ValueError:
    shown = _shown(kind)
    return ValueError(
        f"has the constraint {show_constraints(parts)}, which can't be checked for {shown}: expected {expected}"
    )


def _shown(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)


def _lacks(kind: Any, part: Any) -> bool:
    """Return True if a class lacks the method that a constraint needs.

    Such a class has no length, or can't be compared with a bound of a builtin type.
    """
    origin, name = get_origin(kind) or kind, type(part).__name__.lower()
    if not isinstance(origin, type) or origin is object:
        return False
    if name in ("minlen", "maxlen"):
        return not hasattr(origin, "__len__")
    method = f"__{name}__"
    same = getattr(origin, method, None) is getattr(object, method, None)
    return hasattr(object, method) and same and type(getattr(part, name)) in _SAMPLES


def _samples(kind: Any) -> tuple[Any, ...]:
    """Return sample values of a type; () if other values may behave differently."""
    origin = get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not types.NoneType]
        found = [_samples(get_args(member)[0] if get_origin(member) is Annotated else member) for member in members]
        return tuple(chain(*found)) if all(found) else ()
    if origin is Literal:
        return get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Enum):
        return tuple(origin)
    if is_typeddict(origin):
        return ({},)
    return _SAMPLES.get(origin, ()) if isinstance(origin, type) else ()


# -- annotated_types -------------------------------------------------------------------------------------


def _compare(name: str, holds: Callable[[Any, Any], bool]) -> Callable[[Any], Test]:
    def make(part: Any) -> Test:
        bound = getattr(part, name)
        if bound != bound:
            raise ValueError(f"has the constraint {part!r}, which no value meets: expected a bound other than NaN")
        return lambda value: bool(holds(value, bound))

    return make


def _check_length(part: Any, length: Any) -> None:
    if type(length) is not int or length < 0:
        raise ValueError(f"has the constraint {part!r}: expected a length of 0 or more, as an int")


def _min_len(part: Any) -> Test:
    _check_length(part, part.min_length)
    return lambda value: len(value) >= part.min_length


def _max_len(part: Any) -> Test:
    if part.max_length is not None:
        _check_length(part, part.max_length)
    return lambda value: part.max_length is None or len(value) <= part.max_length


def _timezone(part: Any) -> Test:
    wanted = part.tz
    if wanted is None:
        return lambda value: value.tzinfo is None
    if wanted is ...:
        return lambda value: value.tzinfo is not None
    if wanted not in ("UTC", datetime.UTC):
        raise ValueError(
            f"has the constraint {part!r}, but messages carry only the UTC offset, not the zone: expected "
            "Timezone('UTC'), Timezone(...) or Timezone(None)"
        )
    return lambda value: value.tzinfo is not None and not value.utcoffset()


def _predicate(part: Any) -> Test:
    if not callable(part.func):
        raise ValueError(
            f"has the constraint {part!r}: expected a function that takes the value and returns True or False"
        )
    return lambda value: bool(part.func(value))


_TESTS: dict[str, Callable[[Any], Test]] = {
    "Gt": _compare("gt", operator.gt),
    "Ge": _compare("ge", operator.ge),
    "Lt": _compare("lt", operator.lt),
    "Le": _compare("le", operator.le),
    "MultipleOf": _compare("multiple_of", lambda value, step: value % step == 0),
    "MinLen": _min_len,
    "MaxLen": _max_len,
    "Timezone": _timezone,
    "Predicate": _predicate,
}
