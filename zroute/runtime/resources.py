"""Resources while an app runs: opened in order before the sockets, closed in reverse after the drain.

An async resource lives in one coroutine from its opening to its closing, so that under asyncio both happen
in the same task, as cancel scopes and task groups ask for.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.awaiting import as_awaitable, loop_hint, was_cancelled, within
from zroute.declarations.resources import CompiledResource
from zroute.messages.topics import Topic
from zroute.publishing.producers import Start

__all__ = ["Resources"]

_log = logging.getLogger("zroute")


class Resources:
    """The resources of one run. `objects` holds what is open, by type; ``replaced`` are there without opening.

    A resource that only replaced ones need is not opened.
    """

    def __init__(
        self, compiled: Sequence[CompiledResource], replaced: Mapping[Any, Any], start: Start, reactor: Any
    ) -> None:
        self._compiled = [one for one in compiled if one.kind in _needed(compiled, replaced)]
        self._start = start
        self._reactor = reactor
        self._open: list[_Resource] = []
        self.objects: dict[Any, Any] = dict(replaced)

    async def open(self) -> None:
        """Open all; raises what the first one raises that fails."""
        for compiled in self._compiled:
            one = _Resource(compiled, compiled.call.supply(self.objects).bind({}, Topic()), self._start)
            self._open.append(one)  # also one that fails: a task that is cancelled has something left to do
            try:
                self.objects[compiled.kind] = await one.open()
            except BaseException as error:
                hint = loop_hint(error)
                error.add_note(f"while the resource {compiled.name} at {compiled.where} was opened{hint}")
                raise

    async def close(self, timeout: float, failed: Callable[[BaseException], None]) -> dict[str, int]:
        """Close what is open, each in ``timeout`` seconds; the names of those that took longer.

        What a resource raises is logged and given to ``failed``; the others are closed all the same.
        """
        unfinished: dict[str, int] = {}
        while self._open:
            one = self._open.pop()
            try:
                await within(timeout, one.close(), self._reactor)
            except TimeoutError:
                unfinished[one.compiled.name] = 1
            except BaseException as error:  # also SystemExit: the others are to be closed
                _log.exception(
                    "the resource %s at %s failed to close%s; the stop goes on",
                    one.compiled.name,
                    one.compiled.where,
                    loop_hint(error),
                )
                failed(error)
        return unfinished


def _needed(compiled: Sequence[CompiledResource], replaced: Mapping[Any, Any]) -> set[Any]:
    """The types to open: all but the replaced ones, and those that nobody but these needs."""
    wanted: set[Any] = set()
    for one in reversed(compiled):  # whoever needs it stands behind it
        users = [other.kind for other in compiled if one.kind in other.call.needs]
        if one.kind not in replaced and (not users or wanted & set(users) or one.injected):
            wanted.add(one.kind)
    return wanted


class _Resource:
    """One resource: a generator that is open after its first value and closed after its end."""

    def __init__(self, compiled: CompiledResource, function: Callable[..., Any], start: Start) -> None:
        self.compiled = compiled
        self._function = function
        self._start = start
        self._closing: Deferred[None] = Deferred()
        self._generator: Generator[Any, None, None] | None = None
        self._running: Deferred[Any] | None = None

    def open(self) -> Deferred[Any]:
        """Fires with the object."""
        opened: Deferred[Any] = Deferred(lambda _: self._give_up())
        generator = self._function()
        if hasattr(generator, "__anext__"):
            self._running = self._start(self._hold(generator, opened))
            self._running.addErrback(_unless_open, opened)
        else:
            self._generator = generator
            try:
                opened.callback(next(generator))
            except BaseException as error:
                opened.errback(RuntimeError(_NEVER) if isinstance(error, StopIteration) else error)
        return opened

    def close(self) -> Deferred[Any]:
        """Fires when it has ended."""
        if self._running is not None:
            self._closing.callback(None)
            return self._running
        closed: Deferred[Any] = Deferred()
        try:
            next(self._generator or iter(()))
        except StopIteration:
            closed.callback(None)
        except BaseException:
            closed.errback()
        else:
            if self._generator is not None:
                self._generator.close()
            closed.errback(RuntimeError(_TWICE))
        return closed

    def _give_up(self) -> None:
        if self._running is not None:
            self._running.addErrback(_unless_cancelled)
            self._running.cancel()

    async def _hold(self, generator: AsyncGenerator[Any, None], opened: Deferred[Any]) -> None:
        try:
            made = await anext(generator)
        except StopAsyncIteration:
            raise RuntimeError(_NEVER) from None
        if not opened.called:  # else it was cancelled, and opened all the same
            opened.callback(made)
        await as_awaitable(self._closing)
        try:
            await anext(generator)
        except StopAsyncIteration:
            return
        await generator.aclose()
        raise RuntimeError(_TWICE)


_NEVER = "a resource yields its object once, and this one ended without"
_TWICE = "a resource yields its object once, and this one yielded again where it should have closed"


def _unless_open(failure: Failure, opened: Deferred[Any]) -> Failure | None:
    if opened.called:
        return failure  # to whoever closes it
    opened.errback(failure)
    return None


def _unless_cancelled(failure: Failure) -> Failure | None:
    return None if was_cancelled(failure.value) else failure
