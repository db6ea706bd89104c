"""Inspect user functions without calling them: name, kind, line, local names.

Errors name the line that decorates a function, even if a helper function of the user calls ``app.subscribe`` for it.
While a decorator runs, the frame with the ``def`` statement is at a line of the function, so `users_line` looks for
that frame. For a function that is passed as an argument, the result is the first line outside zroute.

There is one exception: an invalid pattern is refused before the function is known. That error names the line that
passes the pattern to zroute, which may be in the helper.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

__all__ = [
    "PACKAGE",
    "annotated",
    "defined_at",
    "generator_of",
    "identity",
    "is_async_generator_function",
    "is_coroutine_function",
    "is_generator_function",
    "local_names",
    "name_of",
    "raised_at",
    "short_path",
    "users_line",
]

PACKAGE = f"{Path(__file__).parent}{os.sep}"
"""The directory of zroute's own files, with a separator at the end."""

# The second is the beginning of the file names of generated code; see `zroute.codegen`.
_OWN = (PACKAGE, "<zroute ")
_WORD = re.compile(r"[^\W\d]\w*")


# -- the line of registration ----------------------------------------------------------------------------


def users_line(function: object = None) -> str:
    """Return ``file:line`` of the user's code that registers ``function``.

    Without a function, the result is the line that calls zroute. The path is relative to the working directory.
    """
    frame = _first_frame()
    code = _code(function)
    if code is not None:
        # A line is None for instructions that belong to no line.
        last = max(line or 0 for _, _, line in code.co_lines())
        for each in _above(frame):  # the frame that is at a line of the function itself runs its decorators
            if _defines(each, code) and code.co_firstlineno <= each.f_lineno <= last:
                frame = each
                break
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno}"


def defined_at(function: Callable[..., Any]) -> str:
    """Return ``file:line`` of the definition of ``function``.

    The result is empty if the function has no Python code.
    """
    code = _code(annotated(function))
    return "" if code is None else f"{short_path(code.co_filename)}:{code.co_firstlineno}"


def raised_at(error: BaseException) -> str:
    """Return ``file:line`` of the innermost user line that raised an error.

    The result is empty if no line outside zroute was involved.
    """
    where, traceback = "", error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if not filename.startswith(_OWN):
            where = f"{short_path(filename)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return where


def short_path(filename: str) -> str:
    """Return a path; a path inside the working directory becomes relative to it."""
    return _relative(filename, os.getcwd())


@lru_cache(256)  # each registration of a handler asks for the path of its file
def _relative(filename: str, folder: str) -> str:
    try:
        return str(Path(filename).relative_to(folder))
    except ValueError:
        return filename


def _first_frame() -> types.FrameType:
    """Return the innermost frame outside zroute."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_OWN) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _above(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    """Iterate over a frame and its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _defines(frame: types.FrameType, code: types.CodeType) -> bool:
    """Return True if the code of this frame defines the function with ``code``."""
    if frame.f_code.co_filename != code.co_filename:  # most frames: a module may have thousands of constants
        return False
    # By identity, because code objects of different functions may be equal.
    return any(constant is code for constant in frame.f_code.co_consts)


def _code(function: object) -> types.CodeType | None:
    """Return the code object of a user's function, or None."""
    return getattr(inspect.unwrap(_innermost(function)), "__code__", None) if callable(function) else None


# -- kind and name ---------------------------------------------------------------------------------------


def local_names(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """Return the local names that the annotations of ``function`` mention.

    Call it while ``function`` is being registered. The result is None if ``function`` is not defined inside another
    function.

    A registered function lives as long as the app, so it must not keep the frame or other local variables alive. The
    result therefore contains only names that annotations mention as text. With ``from __future__ import annotations``,
    all annotations are text.
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
    if code.co_flags & inspect.CO_OPTIMIZED:  # reading f_locals makes a copy, which lives as long as the frame
        words &= {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    return {word: frame.f_locals[word] for word in words if word in frame.f_locals} if words else {}


def annotated(function: Callable[..., Any]) -> Any:
    """Return the object with the annotations of ``function``.

    The result is the function itself, or for a callable object, ``__call__`` of its class.
    """
    function = _innermost(function)
    if isinstance(function, types.FunctionType | types.MethodType | type) or hasattr(function, "__wrapped__"):
        return function
    return type(function).__call__


def _words(annotation: Any) -> set[str]:
    """Return the words in the text of an annotation."""
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return set(_WORD.findall(annotation))
    return set[str]().union(*map(_words, typing.get_args(annotation)))


def name_of(function: Callable[..., Any]) -> str:
    """Return a short readable name: ``on_quote()``, ``Desk.on_quote()``."""
    function = _innermost(function)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{name.rpartition('<locals>.')[2]}()"


def identity(function: Callable[..., Any]) -> object:
    """Return a key that is equal only for the same function.

    Each access of a bound method creates a new object, so methods are compared by their parts.
    """
    if isinstance(function, types.MethodType):
        return id(function.__self__), id(function.__func__)
    return id(function)


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Return True if ``function`` is a generator function, plain or async."""
    if type(function) is types.FunctionType:  # the usual case: an app may have thousands of handlers
        return bool(function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))
    target = _code_of(function)
    return inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)


def is_async_generator_function(function: Callable[..., Any]) -> bool:
    """Return True if ``function`` is an ``async`` generator function."""
    return inspect.isasyncgenfunction(_code_of(function))


def generator_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the generator function that a context manager function wraps.

    Functions from ``contextlib.contextmanager`` and ``asynccontextmanager`` are context manager functions. Any other
    function is returned unchanged.
    """
    if isinstance(function, partial):
        return partial(generator_of(function.func), *function.args, **function.keywords)
    if isinstance(function, types.MethodType):
        return types.MethodType(generator_of(function.__func__), function.__self__)
    if getattr(function, "__code__", None) in _MANAGERS:
        return cast("Callable[..., Any]", function.__wrapped__)  # type: ignore[attr-defined]
    return function


# contextlib makes all of its functions from these two code objects.
_MANAGERS = (contextmanager(iter).__code__, asynccontextmanager(aiter).__code__)


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Return True if ``function`` is an ``async def``."""
    if type(function) is types.FunctionType and not function.__dict__:  # inspect.markcoroutinefunction uses __dict__
        return bool(function.__code__.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(_code_of(function))


def _code_of(function: Callable[..., Any]) -> Any:
    """Return the function whose code determines the kind of a callable."""
    function = _innermost(function)
    return function if inspect.isroutine(function) else type(function).__call__


def _innermost(function: Any) -> Any:
    """Return the function inside ``functools.partial`` objects."""
    while isinstance(function, partial):
        function = function.func
    return function
