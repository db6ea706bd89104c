"""Check the functions of ``app.publisher(snapshot=, topics=)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from zroute.declarations.captures import Converter, converter_of
from zroute.declarations.signatures import has_copied_return, hints_of
from zroute.errors import SignatureError
from zroute.functions import (
    defined_at,
    is_async_generator_function,
    is_coroutine_function,
    is_generator_function,
    local_names,
    name_of,
    users_line,
)
from zroute.publishing.publication import SnapshotFunctions

__all__ = ["check_snapshot"]


def check_snapshot(make: Any, topics: Any, captures: Sequence[str], where: str) -> SnapshotFunctions | None:
    """Return the checked functions; None if both are None.

    Args:
        make: The value of ``snapshot=``.
        topics: The value of ``topics=``.
        captures: The captures of the publication's pattern.
        where: The user's line, for errors.

    Raises:
        SignatureError: A value is not a plain function, or the function can't be called with the captures.
    """
    if make is None:
        if topics is not None:
            shown = name_of(topics) if callable(topics) else repr(topics)
            raise SignatureError(
                f"topics={shown} needs snapshot=: it returns the topics of which the app makes snapshots",
                parameter="topics",
                where=where,
            )
        return None
    _check_plain("snapshot", make, where)
    line = users_line(make) or where
    hints = hints_of(make, local_names(make), line)
    converters = _converters(make, captures, hints, line)
    if topics is not None:
        _check_plain("topics", topics, where)
        if needed := [each.name for each in _parameters(topics) if each.default is Parameter.empty]:
            raise SignatureError(
                f"topics={name_of(topics)} has the parameter {needed[0]!r}, but zroute calls the function without "
                "arguments",
                parameter="topics",
                where=users_line(topics),
            )
    returns = None if has_copied_return(make) else hints.get("return")
    return SnapshotFunctions(make, topics, converters, defined_at(make) or line, returns)


def _check_plain(option: str, function: Any, where: str) -> None:
    if not callable(function):
        raise SignatureError(f"{option}={function!r}: expected a function", parameter=option, where=where)
    is_async = is_coroutine_function(function) or is_async_generator_function(function)
    if is_async or (option == "snapshot" and is_generator_function(function)):
        raise SignatureError(
            f"{option}={name_of(function)} must be a plain function that returns its result at once, because no "
            "message may be published between the beginning and the end of a snapshot: remove async and yield, and "
            "keep the state in memory",
            parameter=option,
            where=users_line(function),
        )


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    several = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD
    return [each for each in signature(function).parameters.values() if each.kind not in several]


def _converters(
    make: Callable[..., Any], captures: Sequence[str], hints: Mapping[str, Any], line: str
) -> dict[str, Converter]:
    """Return the converter of each capture that ``make`` takes."""
    taken = _parameters(make)
    for parameter in taken:
        known = parameter.name in captures and parameter.kind is not Parameter.POSITIONAL_ONLY
        if not known and parameter.default is Parameter.empty:
            raise SignatureError(
                f"snapshot={name_of(make)} has the parameter {parameter.name!r}, but zroute calls the function with "
                f"the captures of the pattern by name: {', '.join(captures) or 'none'}",
                parameter=parameter.name,
                where=line,
            )
    every = any(each.kind is Parameter.VAR_KEYWORD for each in signature(make).parameters.values())
    names = [name for name in captures if every or name in {each.name for each in taken}]
    return {name: converter_of(hints.get(name, str), name, line) for name in names}
