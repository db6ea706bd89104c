"""What can be known of a function of the user's without calling it: its name, its kind, its line, its names.

The line that errors name is the one that decorates a function, also where a helper of the user's calls
``app.subscribe`` for it: `users_line` looks for the frame in whose code the function is defined, and which stands at
one of its lines. For a function that is passed along it is the first line outside zroute.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

__all__ = [
    "PACKAGE",
    "annotated",
    "identity",
    "is_coroutine_function",
    "is_generator_function",
    "local_names",
    "name_of",
    "short_path",
    "users_line",
]

PACKAGE = f"{Path(__file__).parent}{os.sep}"
"""How the names of zroute's own files begin."""

_OWN = (PACKAGE, "<zroute ")
_WORD = re.compile(r"[^\W\d]\w*")


# -- where it is registered ------------------------------------------------------------------------------


def users_line(function: object = None) -> str:
    """``file:line`` of the user's that registers ``function``, or calls zroute; relative to the working directory."""
    frame = _first_frame()
    code = _code(function)
    if code is not None:
        last = max(line or 0 for _, _, line in code.co_lines())
        for each in _above(frame):  # a frame whose line is one of the function's own is at its decorators
            if _defines(each, code) and code.co_firstlineno <= each.f_lineno <= last:
                frame = each
                break
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno}"


def short_path(filename: str) -> str:
    """Relative to the working directory, if it is in there."""
    try:
        return str(Path(filename).relative_to(os.getcwd()))
    except ValueError:
        return filename


def _first_frame() -> types.FrameType:
    """The first frame above that is not zroute's."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_OWN) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _above(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _defines(frame: types.FrameType, code: types.CodeType) -> bool:
    return any(constant is code for constant in frame.f_code.co_consts)


def _code(function: object) -> types.CodeType | None:
    return getattr(inspect.unwrap(_innermost(function)), "__code__", None) if callable(function) else None


# -- what it is ------------------------------------------------------------------------------------------


def local_names(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """Return what the annotations of ``function``, which is being registered, may mean where it is defined.

    None for a function that is not defined inside another. What is registered lives as long as the app, so it must not
    keep the other local variables alive, and the frame itself least of all: names are taken only if annotations mention
    them as text (also all those of a module with ``from __future__ import annotations``).
    """
    target = annotated(function)
    if "<locals>" not in getattr(target, "__qualname__", ""):
        return None
    kinds = target.__mro__ if isinstance(target, type) else (target,)
    hints = [hint for kind in kinds for hint in getattr(kind, "__annotations__", {}).values()]
    words = set[str]().union(*map(_words, hints))
    if not words:
        return {}
    first, code = _first_frame(), _code(function)
    frame = next((each for each in _above(first) if code is not None and _defines(each, code)), first)
    code = frame.f_code
    if code.co_flags & inspect.CO_OPTIMIZED:  # reading f_locals makes a copy that lives as long as the frame
        words &= {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    return {word: frame.f_locals[word] for word in words if word in frame.f_locals} if words else {}


def annotated(function: Callable[..., Any]) -> Any:
    """What has the annotations of ``function``: itself, or its class's ``__call__``."""
    function = _innermost(function)
    if isinstance(function, types.FunctionType | types.MethodType | type) or hasattr(function, "__wrapped__"):
        return function
    return type(function).__call__


def _words(annotation: Any) -> set[str]:
    """Return the words of an annotation that is text, or has text in it."""
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return set(_WORD.findall(annotation))
    return set[str]().union(*map(_words, typing.get_args(annotation)))


def name_of(function: Callable[..., Any]) -> str:
    """A short readable name: ``on_quote()``, ``Desk.on_quote()``."""
    function = _innermost(function)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{name.rpartition('<locals>.')[2]}()"


def identity(function: Callable[..., Any]) -> object:
    """What is equal for the same function only: each access of a bound method makes a new object."""
    if isinstance(function, types.MethodType):
        return id(function.__self__), id(function.__func__)
    return id(function)


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Whether calling ``function`` makes a generator, plain or async."""
    target = _code_of(function)
    return inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether ``function`` is an ``async def``."""
    return inspect.iscoroutinefunction(_code_of(function))


def _code_of(function: Callable[..., Any]) -> Any:
    function = _innermost(function)
    return function if inspect.isroutine(function) else type(function).__call__


def _innermost(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function
