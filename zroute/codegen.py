"""Compile functions from source text that is generated at run time.

attrs and cattrs do the same. In code that runs for each message, a loop over fields, or a call for each field, costs
more than the check itself. This code is therefore generated for each type.

The same text is compiled only once, for any number of handlers: compiling takes 100 us, and running the compiled code
takes 2 us. The source is added to linecache, so tracebacks, profilers and debuggers show its lines.
"""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from functools import cache
from itertools import count
from types import CodeType
from typing import Any

__all__ = ["define", "make_lambda"]


def define(source: str, name: str, names: Mapping[str, Any]) -> Any:
    """Return the function ``name`` that ``source`` defines.

    ``names`` are copied to the globals of the function. Raises SyntaxError if the source is invalid.
    """
    exec(_compiled(source, name), scope := dict(names))
    return scope[name]


def make_lambda(expression: str, names: Mapping[str, Any], parameters: str = "m") -> Any:
    """Return a function of ``parameters`` that returns ``expression``.

    ``names`` are copied to the globals of the function. Raises SyntaxError if the expression is invalid.
    """
    return define(f"result = lambda {parameters}: {expression}", "result", names)


_numbers = count(1)  # file names stay unique even if linecache was cleared


@cache
def _compiled(source: str, name: str) -> CodeType:
    filename = f"<zroute {name} {next(_numbers)}>"
    # linecache.checkcache() keeps an entry whose modification time is None.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return compile(source, filename, "exec")
