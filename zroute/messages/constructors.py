"""Find the classes whose own code must run when an object is created.

msgspec creates objects of attrs classes and dataclasses without calling the class. It allocates the object, sets the
fields, and runs the hooks and validators that msgspec supports. The result equals that of a call only if attrs or
dataclasses generated the constructor. For any other class, zroute calls the class, so that its own checks run.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["Parameter", "fields", "has_fields", "parameters", "why_called"]

_ATTRS_FILE = attrs.fields.__code__.co_filename  # attrs defines the __setattr__ of frozen classes in the same file


@attrs.frozen
class Parameter:
    """The constructor parameter for a field.

    Attributes:
        name: the name of the parameter.
        required: True if the parameter has no default.
    """

    name: str
    required: bool


def why_called(kind: type) -> str | None:
    """Return the reason why objects must be created by calling ``kind``.

    Return None if msgspec creates equal objects without a call. ``kind`` is a class with fields.
    """
    if issubclass(kind, tuple):
        made = getattr(kind.__new__, "__globals__", {}).get("__name__", "")
        if not made.startswith("namedtuple_") or kind.__init__ is not object.__init__:
            return f"{kind.__name__} has a custom constructor"
        return None
    if not has_fields(kind):
        return None  # a TypedDict has no constructor, and a Struct can't define one
    if type(kind).__call__ is not type.__call__:
        return f"{kind.__name__} has a metaclass with a custom __call__"
    for name, standard in (("__new__", object.__new__), ("__setattr__", object.__setattr__)):
        method = getattr(kind, name)
        if method is not standard and not _is_generated(method):
            return f"{kind.__name__} has a custom {name}"
    # With init=False, a class inherits an __init__ that does not know its own fields.
    if _owner(kind, "__init__") is not _owner(kind, _record(kind)) or not _is_generated(kind.__init__):
        return f"{kind.__name__} has a custom __init__"
    before = getattr(kind, "__attrs_pre_init__", None)
    if before is not None and len(inspect.signature(before).parameters) > 1:
        return f"{kind.__name__} has an __attrs_pre_init__ with parameters"
    for field in fields(kind):
        if not field.init and _lacks_default(field):
            return f"{kind.__name__}.{field.name} is set by the class itself (init=False)"
    return None


def parameters(kind: type) -> Mapping[str, Parameter]:
    """Return the constructor parameters of ``kind``, by the name of their field.

    The result omits fields that the constructor does not accept, because the class sets them itself.

    Raises:
        ValueError: a parameter of the constructor does not match any field. The text of the error names the parameter.
    """
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has a constructor without a readable signature ({error})") from error
    taken, rest, found = dict(signature.parameters), False, {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"has a constructor whose parameter {name!r} is positional-only")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            rest = rest or parameter.kind is parameter.VAR_KEYWORD
            del taken[name]
    for field in fields(kind):
        # For a field `_price`, attrs names the parameter `price`, but a custom constructor may use either name.
        alias = getattr(field, "alias", None) or field.name
        name = alias if alias in taken or field.name not in taken else field.name
        if name in taken:
            found[field.name] = Parameter(name, taken.pop(name).default is inspect.Parameter.empty)
        elif rest and field.init:
            found[field.name] = Parameter(name, _lacks_default(field))
    needed = [name for name, parameter in taken.items() if parameter.default is inspect.Parameter.empty]
    if needed:
        raise ValueError(f"has a constructor with the parameter {needed[0]!r}, which is not the name of a field")
    return found


def has_fields(kind: type) -> bool:
    """Return True if ``kind`` is an attrs class or a dataclass."""
    return attrs.has(kind) or dataclasses.is_dataclass(kind)


def _record(kind: type) -> str:
    return "__attrs_attrs__" if attrs.has(kind) else "__dataclass_fields__"


def fields(kind: type) -> tuple[Any, ...]:
    """Return the field objects of an attrs class or a dataclass."""
    return tuple(attrs.fields(kind)) if attrs.has(kind) else dataclasses.fields(kind)


def _lacks_default(field: Any) -> bool:
    if isinstance(field, dataclasses.Field):
        return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return bool(field.default is attrs.NOTHING)


def _owner(kind: type, name: str) -> type | None:
    """Return the class that defines an attribute of ``kind``."""
    return next((base for base in kind.__mro__ if name in vars(base)), None)


def _is_generated(method: Any) -> bool:
    """Return True if attrs or dataclasses generated the method."""
    code = getattr(method, "__code__", None)
    return code is not None and (
        code.co_filename.startswith("<attrs generated")
        or code.co_filename == _ATTRS_FILE
        or code.co_qualname.startswith("__create_fn__.")  # the name that dataclasses gives to its functions
    )
