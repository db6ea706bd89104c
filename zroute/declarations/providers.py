"""Find the object for a parameter by its annotation: the app or a resource.

A parameter annotated with the type of a resource receives the resource. The annotation may also be ``Annotated[Db, …]``
or ``Db | None``. A parameter annotated with a Protocol or a base class receives the resource that satisfies it, if
there is only one. This looser rule applies only to types that a message can't have, so it never affects the parameter
of the body.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, Union, get_args, get_origin

import attrs

from zroute.declarations.captures import hashable
from zroute.errors import SchemaError, SignatureError
from zroute.messages.schema import describe, inspect, is_class

__all__ = ["Needed", "asked", "find_marker", "may_be_body", "provided"]


@attrs.frozen
class Needed:
    """A placeholder for the object of a resource, which is created when the app runs.

    Attributes:
        kind: The type that the resource yields.
        exact: True if only a parameter of exactly this type receives it.
    """

    kind: Any
    exact: bool = False


def asked(hint: Any) -> Any:
    """Return an annotation without ``Annotated``, ``| None`` and aliases."""
    while True:
        if get_origin(hint) is Annotated:
            hint = hint.__origin__
        elif get_origin(hint) in (Union, types.UnionType):
            members = [member for member in get_args(hint) if member is not types.NoneType]
            if len(members) != 1:
                return hint
            hint = members[0]
        elif hasattr(hint, "__value__"):  # a `type X = …` alias of Python 3.12
            hint = hint.__value__
        else:
            return hint


def provided(name: str, hint: Any, given: Mapping[Any, Any], *, own_codec: bool, where: str) -> Any:
    """Return the object, or `Needed`, for a parameter with this annotation.

    Return None if no object matches.

    Args:
        name: The name of the parameter.
        hint: The annotation of the parameter.
        given: The available objects, or `Needed`, by their type.
        own_codec: True if a user's own codec decodes the body. The body may then be of any class, so base classes are
            not matched.
        where: The user's line, as ``file:line``, for errors.

    Raises:
        SignatureError: Several resources satisfy the annotation.
    """
    wanted = asked(hint)
    # An annotation may be any object, and a dict can only look up hashable objects. The whole annotation may be a key
    # too, such as `RouteInfo | None` for an error hook.
    for kind in (hint, wanted):
        if hashable(kind) and kind in given:
            return given[kind]
    if not isinstance(get_origin(wanted) or wanted, type) or (own_codec and not _is_protocol(wanted)):
        return None
    needed = [value for value in given.values() if isinstance(value, Needed) and not value.exact]
    found = [value for value in needed if _satisfies(value.kind, wanted)]
    if not found or may_be_body(wanted):
        return None
    if len(found) > 1:
        several = " and ".join(describe(value.kind) for value in found)
        raise SignatureError(
            f"parameter {name!r} is annotated with {describe(wanted)}, but several resources have this type "
            f"({several}): annotate the parameter with the type of one resource",
            parameter=name,
            where=where,
        )
    return found[0]


def may_be_body(hint: Any) -> bool:
    """Return True if a message can have this type.

    Messages can be instances of classes with fields, and of all other types that zroute's codecs support.
    """
    if is_class(get_origin(hint) or hint):
        return True
    try:
        inspect(hint)
    except SchemaError:
        return False
    return True


_FRAMEWORKS = ("fastapi", "faststream", "fast_depends")
_IN_HEADERS = "replace the parameter with `envelope: Envelope`, and read envelope.headers"
_IN_TOPIC = "write the capture {{{name}}} in the pattern, and annotate the parameter with only its type"
_IS_BODY = "annotate the parameter with only the type of the body"
_RESOURCE = (
    "write an @app.resource that yields the object, as in `@app.resource def {name}() -> Iterator[Database]`, and "
    "annotate the parameter with the class of the object"
)
_REMEDIES = {
    "Header": _IN_HEADERS,
    "Cookie": _IN_HEADERS,
    "Path": _IN_TOPIC,
    "Query": _IN_TOPIC,
    "Body": _IS_BODY,
    "Form": _IS_BODY,
    "File": _IS_BODY,
}
_OF_PREFIX = {"message.headers.": "Header", "message.path.": "Path"}
"""Maps the prefix of FastStream's ``Context`` to the marker that creates a ``Context`` with this prefix."""


def find_marker(name: str, hint: Any, default: Any) -> tuple[str, str] | None:
    """Return the name of another framework's marker and the remedy, or None.

    Examples are ``Depends(f)`` and ``Header()``, inside ``Annotated`` or as the default of the parameter ``name``.
    """
    for marker in (default, *getattr(hint, "__metadata__", ())):
        classes = (marker if isinstance(marker, type) else type(marker)).__mro__
        if any("Depend" in kind.__name__ or kind.__module__.partition(".")[0] in _FRAMEWORKS for kind in classes):
            made_as = _OF_PREFIX.get(str(getattr(marker, "prefix", "")), classes[0].__name__)
            return made_as, _REMEDIES.get(made_as, _RESOURCE).format(name=name)
    return None


def _satisfies(kind: Any, wanted: Any) -> bool:
    """Return True if every object of type ``kind`` certainly has the type ``wanted``."""
    while isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    kind = get_origin(asked(kind)) or asked(kind)
    if not isinstance(kind, type):
        return False
    if get_origin(wanted) is not None:  # such as Repository[User], which only an explicit base class declares
        return any(wanted in getattr(base, "__orig_bases__", ()) for base in kind.__mro__)
    return wanted in kind.__mro__ or (_is_protocol(wanted) and _has_members(kind, wanted))


def _is_protocol(hint: Any) -> bool:
    return bool(getattr(get_origin(hint) or hint, "_is_protocol", False))


class _Empty(Protocol): ...


# Python adds these names to every protocol; some of them exist only in newer versions.
_NOT_MEMBERS = {*vars(_Empty), "__annotations__", "__orig_bases__", "__slots__", "__static_attributes__"}
_NOT_MEMBERS |= {"__annotate__", "__annotate_func__", "__annotations_cache__", "__type_params__", "__init__"}
_NOT_MEMBERS |= {"__protocol_attrs__", "__non_callable_proto_members__", "__firstlineno__", "__classcell__"}


def _has_members(kind: type, protocol: Any) -> bool:
    """Return True if ``kind`` has all members that ``protocol`` declares."""
    bases = [base for base in protocol.__mro__ if _is_protocol(base) and base is not Protocol]
    declared = {name for base in bases for name in (*vars(base), *getattr(base, "__annotations__", ()))}
    members = {name for name in declared - _NOT_MEMBERS if not name.startswith(("_abc_", "_is_"))}
    return bool(members) and all(_has_member(kind, name) for name in members)


def _has_member(kind: type, name: str) -> bool:
    # A class removes an inherited member by setting it to None, such as __hash__.
    if getattr(kind, name, None) is not None:
        return True
    # Python 3.13 lists the attributes that methods assign to `self` in __static_attributes__.
    return any(
        name in vars(base).get("__annotations__", ()) or name in vars(base).get("__static_attributes__", ())
        for base in kind.__mro__
    )
