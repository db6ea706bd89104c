"""Functions whose source is put together at run time, as attrs and cattrs make theirs.

Where a message passes, a loop over fields or a call for each of them costs more than the look itself, so such code is
written out for each type. All of it is compiled here: the same text once, however many handlers need it (compiling
takes 100 us, running it 2), and known to linecache, so that tracebacks, profilers and debuggers show its lines.
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
    """The function ``name`` that ``source`` defines; ``names`` are its globals, copied. Raises SyntaxError."""
    exec(_compiled(source, name), scope := dict(names))
    return scope[name]


def make_lambda(expression: str, names: Mapping[str, Any]) -> Any:
    """A function of ``m`` that returns ``expression``; ``names`` are its globals, copied. Raises SyntaxError."""
    return define(f"result = lambda m: {expression}", "result", names)


_numbers = count(1)  # also after linecache was cleared: a name must not come twice


@cache
def _compiled(source: str, name: str) -> CodeType:
    filename = f"<zroute {name} {next(_numbers)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return compile(source, filename, "exec")
