"""Marks that follow from a test's code: `processes` and `sockets`.

They are derived from the names that the test uses, directly or through helpers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

PROCESSES = {"Child", "Command", "Popen", "check_output", "fork", "runpytest_subprocess", "subprocess"}
"""Names that start a process."""

SOCKETS = {
    "AppService",
    "Context",
    "Pub",
    "Push",
    "Sockets",
    "Sub",
    "SharedContext",
    "ZmqFactory",
    "factory",
    "running",
    "sockets",
}
"""Names that open ZeroMQ sockets in the process of the tests."""

OVER_SOCKETS = ("tests.acceptance.", "tests.programs.", "tests.cli.", "tests.sockets.", "tests.txzmq.")
"""Packages whose tests start processes in order to test their sockets."""


def marks_of(item: pytest.Function) -> Iterator[str]:
    """Return the marks of a test, from its function, its fixtures and their helpers."""
    test = item.obj
    if handle := getattr(test, "hypothesis", None):
        test = handle.inner_test
    used = set(names(inspect.unwrap(getattr(test, "__func__", test))))
    for name, fixtures in item._fixtureinfo.name2fixturedefs.items():
        used.add(name)
        for fixture in fixtures:
            used |= names(inspect.unwrap(fixture.func))
    processes = bool(used & PROCESSES)
    if processes:
        yield "processes"
    if (
        used & SOCKETS
        or any(name.endswith("Connection") for name in used)
        or (processes and item.module.__name__.startswith(OVER_SOCKETS))
    ):
        yield "sockets"


@cache
def names(used: Any) -> frozenset[str]:
    """Return all names in the code of a test function or class, and in its helpers."""
    found: set[str] = set()
    waiting, seen = [used], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or str(getattr(one, "__module__", "")).split(".")[0] not in ("tests", "chaos", "benchmarks"):
            continue
        seen.add(id(one))
        if isinstance(one, type):
            waiting += [getattr(member, "__wrapped__", member) for member in vars(one).values()]
            waiting += one.__bases__
        elif isinstance(one, FunctionType):
            own = set(codes_names(one.__code__))
            found |= own
            scope = vars(sys.modules[one.__module__])
            for name in own & scope.keys():
                if isinstance(scope[name], ModuleType):
                    waiting += [member for member in map(vars(scope[name]).get, own) if callable(member)]
                elif callable(scope[name]):
                    waiting.append(inspect.unwrap(scope[name]))
    return frozenset(found)


def codes_names(code: CodeType) -> Iterator[str]:
    """Return the names that the code uses, including the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_names(constant)
