"""Compile functions from source text that is generated at run time.

attrs and cattrs do the same. In code that runs for each message, a loop over fields, or a call for each field, costs
more than the check itself. This code is therefore generated for each type.

The same text is compiled only once, for any number of handlers and topics: compiling takes 100 us, and a further
function 0.3 us. Its names are in cells, not in globals of its own. CPython caches the look-ups of globals in the code,
which all these functions share; with different globals, each call would miss, which took 10 % of a message with more
than one topic.

The source is added to linecache, so tracebacks, profilers and debuggers show its lines.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Mapping
from functools import cache
from itertools import count
from textwrap import dedent, indent
from typing import Any

import attrs

__all__ = ["Inline", "define", "define_maker", "make_lambda", "source_of"]

_PLACE = "<zroute "
"""The beginning of the file names of generated functions."""


@attrs.frozen
class Inline:
    """The source lines of a function, for use inside a larger generated function.

    A function that contains the lines saves a call. A function with such lines has them in its attribute ``inline``.
    The variables that the lines read and assign depend on what the function does.

    Attributes:
        lines: The source, without indentation.
        names: The objects that the lines refer to, by name.
    """

    lines: tuple[str, ...]
    names: Mapping[str, Any]


def define(source: str, name: str, names: Mapping[str, Any]) -> Any:
    """Return the function ``name`` that ``source`` defines.

    ``names`` are the objects that the function refers to, by name. Raises SyntaxError if the source is invalid.
    """
    return _factory(source, name, tuple(names), ())(*names.values())()


def define_maker(source: str, name: str, names: Mapping[str, Any], given: tuple[str, ...]) -> Callable[..., Any]:
    """Return a maker of the function ``name`` that ``source`` defines.

    The maker takes the objects of the names ``given``, which differ between the functions. All functions share the
    ``names``, so one more function needs little memory, and little work of the garbage collector.
    """
    made: Callable[..., Any] = _factory(source, name, tuple(names), given)(*names.values())
    return made


def make_lambda(expression: str, names: Mapping[str, Any], parameters: str = "m") -> Any:
    """Return a function of ``parameters`` that returns ``expression``.

    ``names`` are the objects that it refers to, by name. Raises SyntaxError if the expression is invalid.
    """
    return define(f"result = lambda {parameters}: {expression}", "result", names)


def source_of(function: object) -> str | None:
    """Return the source of a generated function; None for another function.

    The source begins without indentation.
    """
    code = getattr(function, "__code__", None)
    if code is None or not code.co_filename.startswith(_PLACE):
        return None
    return dedent(inspect.getsource(code)).rstrip()


_numbers = count(1)  # file names stay unique even if linecache was cleared


@cache
def _factory(source: str, name: str, names: tuple[str, ...], given: tuple[str, ...]) -> Callable[..., Any]:
    """Return a function of ``names`` that returns a maker; see `define_maker`."""
    text = (
        f"def share({', '.join(names)}):\n    def make({', '.join(given)}):\n"
        f"{indent(source, ' ' * 8)}\n        return {name}\n    return make\n"
    )
    filename = f"{_PLACE}{name} {next(_numbers)}>"
    # linecache.checkcache() keeps an entry whose modification time is None.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {}
    exec(compile(text, filename, "exec"), scope)
    made: Callable[..., Any] = scope["share"]
    return made
