"""Bridges: functions with decorators of two apps.

The app that subscribes calls the function, and the other app publishes the results:

    @outside.publisher("public.{name}")
    @inside.subscribe("private.{name}")
    def bridge(value: int) -> int: ...

Neither app refers to the other one. zroute recognises a bridge because its decorators run directly one after the other,
with the same function. If a program registers a function at two different places, the function is not a bridge. This
happens, for example, if the program creates several apps in succession.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet, ref

from zroute.declarations.records import Producer, Route
from zroute.functions import identity

__all__ = ["Stack", "end_stack", "stacked"]


class Stack:
    """The decorators of one function, in the order of their calls.

    A stack does not keep the function or the groups of routes alive. The cost of `add` does not depend on the number of
    entries and groups, because a program may register the same function thousands of times.
    """

    def __init__(self, key: object) -> None:
        self.key = key
        self.groups: WeakSet[Any] = WeakSet()
        self._entries: list[tuple[ref[Any], ref[Route | Producer]]] = []

    def add(self, group: Any, record: Route | Producer) -> None:
        """Add a decorator of ``group``. With the second group, all groups get this stack."""
        self._entries.append((ref(group), ref(record)))
        if group in self.groups:
            return
        self.groups.add(group)
        if len(self.groups) > 1:  # with more than two groups, the earlier groups already have the stack
            for each in (group,) if len(self.groups) > 2 else self.groups:
                each._stacks[self] = None

    def __iter__(self) -> Iterator[tuple[Any, Route | Producer]]:
        """Iterate over the groups and records that are still alive."""
        for group, record in [(group(), record()) for group, record in self._entries]:
            if group is not None and record is not None:
                yield group, record

    def callers(self) -> list[Any]:
        """Return the groups in which the function is a handler, without duplicates."""
        return list(dict.fromkeys(group for group, record in self if isinstance(record, Route)))

    def publishers(self) -> list[tuple[Any, Producer]]:
        """Return the producers that publish results of another app, with their groups.

        The result omits timers, and also omits producers of an app that calls the function itself.
        """
        callers = self.callers()
        return [
            (group, record)
            for group, record in self
            if isinstance(record, Producer)
            and record.publication
            and not record.schedule
            and not any(caller in group._groups() or group in caller._groups() for caller in callers)
        ]


_latest: Stack | None = None


def stacked(group: Any, record: Route | Producer) -> None:
    """Record a decorator; groups of several apps get a common `Stack`.

    A stack is no longer used when all its groups have been deleted. Its function may then be deleted too, and another
    function may get the same key.
    """
    global _latest
    key = identity(record.function)
    if _latest is None or _latest.key != key or not _latest.groups:
        _latest = Stack(key)
    _latest.add(group, record)


def end_stack(group: Any) -> None:
    """End the latest stack if it contains ``group``, whose app is being compiled."""
    global _latest
    if _latest is not None and group in _latest.groups:
        _latest = None
