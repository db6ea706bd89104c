"""Resources of a running app: opened before the sockets, closed after the drain.

Resources close in reverse order. An async resource is opened and closed in the same coroutine. Under asyncio, both
therefore happen in the same task, as cancel scopes and task groups require.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from zroute.awaiting import as_awaitable, loop_hint, was_cancelled, within
from zroute.declarations.providers import Needed
from zroute.declarations.resources import CompiledResource, MessageResources
from zroute.publishing.producers import Start
from zroute.receiving.scoped import Opening, Scope

__all__ = ["Resources"]

_log = logging.getLogger("zroute")


class Resources:
    """The resources of one run.

    `objects` contains all open resources by type, and the replacements that a test provides. A resource that is needed
    only by replaced resources is not opened.
    """

    def __init__(
        self, compiled: Sequence[CompiledResource], replaced: Mapping[Any, Any], start: Start, reactor: Any
    ) -> None:
        self._compiled = [one for one in compiled if one.kind in _needed(compiled, replaced)]
        self._start = start
        self._reactor = reactor
        self._open: list[_Resource] = []
        self.objects: dict[Any, Any] = dict(replaced)

    def provides(self, kind: Any) -> bool:
        """Return True if a resource of this type is open, or is opened per message."""
        return kind in self.objects or any(one.kind == kind for one in self._compiled if one.scope == "message")

    def scope(self, needs: MessageResources | None) -> Scope | None:
        """Return a `Scope` that opens the resources of a message, or None."""
        if needs is None:
            return None
        replaced = {one.kind: self.objects[one.kind] for one in needs.resources if one.kind in self.objects}
        openings = [self._opening(one) for one in needs.resources if one.kind not in replaced]
        return Scope(openings, needs.parameters, replaced, needs.around_chain)

    def _opening(self, resource: CompiledResource) -> Opening:
        given = resource.call.constants.given
        later = {
            name: value.kind
            for name, value in given.items()
            if isinstance(value, Needed) and value.kind not in self.objects
        }
        bound = {
            name: self.objects[value.kind] if isinstance(value, Needed) else value
            for name, value in given.items()
            if name not in later
        }
        return Opening(resource.kind, partial(resource.call.function, **bound), later, resource.is_async)

    async def open(self) -> None:
        """Open all resources of the app in order.

        If a resource fails to open, its error is raised and further resources are not opened. `close` then closes the
        open resources.
        """
        for compiled in (each for each in self._compiled if each.scope == "app"):
            one = _Resource(compiled, compiled.call.supply(self.objects).bind({}, b""), self._start)
            self._open.append(one)  # before the resource opens: a cancelled task may still have to clean up
            try:
                self.objects[compiled.kind] = await one.open()
            except BaseException as error:
                hint = loop_hint(error)
                error.add_note(f"while opening the resource {compiled.name} at {compiled.where}{hint}")
                raise

    async def close(self, timeout: float, failed: Callable[[BaseException, str, str], None]) -> dict[str, int]:
        """Close all open resources; return the names of those that took too long.

        If a resource fails to close, the other resources are still closed.

        Args:
            timeout: the maximum time in seconds for each resource.
            failed: called with each error, and the name and line of the resource. All errors except SystemExit are
                logged before the call.
        """
        unfinished: dict[str, int] = {}
        # The last one first, because it may use the resources that were opened before it.
        while self._open:
            one = self._open.pop()
            try:
                await within(timeout, one.close(), self._reactor)
            except TimeoutError:
                unfinished[one.compiled.name] = 1
            except BaseException as error:  # also SystemExit: the other resources must still close
                name, where = one.compiled.name, one.compiled.where
                if not isinstance(error, SystemExit):
                    text = "the resource %s at %s failed to close%s; the stop continues"
                    _log.exception(text, name, where, loop_hint(error))
                failed(error, name, where)
        return unfinished


def _needed(compiled: Sequence[CompiledResource], replaced: Mapping[Any, Any]) -> set[Any]:
    """Return the types of the resources to open.

    A resource is opened if it is not replaced, unless only resources that are not opened use it.
    """
    wanted: set[Any] = set()
    for one in reversed(compiled):  # a resource comes before all resources that use it
        users = [other.kind for other in compiled if one.kind in other.call.needs]
        if one.kind not in replaced and (not users or wanted & set(users) or one.injected):
            wanted.add(one.kind)
    return wanted


class _Resource:
    """One resource: a generator that opens at its first value and closes at its end."""

    def __init__(self, compiled: CompiledResource, function: Callable[..., Any], start: Start) -> None:
        self.compiled = compiled
        self._function = function
        self._start = start
        self._closing: Deferred[None] = Deferred()
        self._generator: Generator[Any, None, None] | None = None
        self._running: Deferred[Any] | None = None

    def open(self) -> Deferred[Any]:
        """Return a Deferred that fires with the resource's object."""
        opened: Deferred[Any] = Deferred(lambda _: self._give_up())  # called if the start is cancelled
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
        """Return a Deferred that fires when the generator has ended."""
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
                # The generator has yielded twice; its ``finally`` blocks still run.
                self._generator.close()
            closed.errback(RuntimeError(_TWICE))
        return closed

    def _give_up(self) -> None:
        if self._running is not None:
            # The task may end after ``opened`` has failed. `close` waits for it, and its cancellation is no error.
            self._running.addErrback(_unless_cancelled)
            self._running.cancel()

    async def _hold(self, generator: AsyncGenerator[Any, None], opened: Deferred[Any]) -> None:
        try:
            made = await anext(generator)
        except StopAsyncIteration:
            raise RuntimeError(_NEVER) from None
        if not opened.called:  # else the start was cancelled, and the resource closes at once
            opened.callback(made)
        await as_awaitable(self._closing)
        try:
            await anext(generator)
        except StopAsyncIteration:
            return
        await generator.aclose()
        raise RuntimeError(_TWICE)


_NEVER = "a resource must yield its object exactly once, but this resource ended without a yield"
_TWICE = "a resource must yield its object exactly once, but this resource yielded twice"


def _unless_open(failure: Failure, opened: Deferred[Any]) -> Failure | None:
    if opened.called:
        return failure  # `close` returned this Deferred, so its caller gets the error
    opened.errback(failure)
    return None


def _unless_cancelled(failure: Failure) -> Failure | None:
    return None if was_cancelled(failure.value) else failure
