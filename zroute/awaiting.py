"""Two kinds of awaiting, one kind of result: Twisted's Deferreds and asyncio's tasks.

Under the asyncio reactor coroutines run as tasks, so that asyncio libraries work in them; under every
other reactor they run on Deferreds. zroute's own awaitables work in both.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred

__all__ = ["as_awaitable", "as_deferred", "is_awaitable", "loop_hint"]

T = TypeVar("T")


def is_awaitable(result: object) -> bool:
    """Whether ``result`` is a Deferred, a coroutine, a future or another awaitable."""
    return hasattr(result, "__await__")


def as_deferred(awaitable: Awaitable[T], *, asyncio_loop: bool) -> Deferred[T]:
    """Run ``awaitable`` to its end; the Deferred fires with its result.

    ``asyncio_loop`` says that the reactor runs on an asyncio loop: a coroutine then becomes a task.
    Cancelling the Deferred cancels what it waits for.
    """
    if isinstance(awaitable, Deferred):
        return awaitable
    if asyncio_loop:
        return Deferred.fromFuture(asyncio.ensure_future(awaitable))
    if inspect.iscoroutine(awaitable):
        return Deferred.fromCoroutine(awaitable)
    return Deferred.fromCoroutine(_await(awaitable))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class _Either(Generic[T]):
    def __init__(self, deferred: Deferred[T]) -> None:
        self._deferred = deferred

    def __await__(self) -> Generator[Any, None, T]:
        if _in_task():
            return self._deferred.asFuture(asyncio.get_running_loop()).__await__()
        return self._deferred.__await__()


def as_awaitable(deferred: Deferred[T]) -> Awaitable[T]:
    """What can be awaited where ``deferred`` can't: in an asyncio task, and in a Deferred coroutine as well."""
    return _Either(deferred)


def _in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no running loop
        return False


def loop_hint(error: BaseException) -> str:
    """What to do where asyncio was awaited without its loop, or a Deferred in one of its tasks."""
    if isinstance(error, RuntimeError) and "no running event loop" in str(error):
        return " (to await asyncio, run on its loop: zroute run --reactor asyncio)"
    if isinstance(error, RuntimeError) and "Task got bad yield: <Deferred" in str(error):
        return " (a task of asyncio can't await a Deferred: await zroute.as_awaitable(deferred))"
    return ""
