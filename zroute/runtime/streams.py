"""Handlers and streams that are added while an app runs.

Both are ordinary routes, so their messages are decoded, queued, counted and drained like those of all other routes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred

from zroute.awaiting import as_awaitable, check_loop
from zroute.declarations.options import ROUTE_DEFAULTS
from zroute.declarations.routes import make_route
from zroute.declarations.since import SinceOption
from zroute.errors import UsageError
from zroute.messages.codecs import Codec
from zroute.messages.topics import Pattern
from zroute.planning.plan import RunningApp
from zroute.receiving.dispatch import CompiledRoute

__all__ = ["Attached", "Stream"]

T = TypeVar("T")


class Attached:
    """A handler that was attached to a running app; `close` detaches it."""

    def __init__(self, run: RunningApp, route: CompiledRoute) -> None:
        self._run = run
        self._route: CompiledRoute | None = route

    def close(self) -> None:
        """Detach the handler; messages that have arrived for it are still handled.

        The app cancels subscriptions that no other handler needs. A second call, or a call after the app has stopped,
        has no effect.

        Raises:
            WrongThreadError: called outside the reactor's thread.
        """
        if self._route is not None:
            self._run.detach(self._route)
            self._route = None

    def __repr__(self) -> str:
        return f"<Attached {self._route.name if self._route else 'closed'}>"


class Stream(Generic[T]):
    """An async iterator over the messages of a pattern, from ``app.stream(…)``.

    A stream is also an async context manager. It receives messages only inside the block:

        async with app.stream("stocks.*", Quote) as quotes:
            async for quote in quotes:
                print(quote)
    """

    def __init__(
        self,
        running: Callable[[], RunningApp],
        patterns: tuple[Pattern, ...],
        schema: Any,
        *,
        codec: str | Codec | None,
        queue: int,
        since: SinceOption | None,
        where: str,
    ) -> None:
        self._running = running
        # One message at a time is in flight: the last one that was offered or taken. The others wait in the queue of
        # the route, so the limit and the counters of the queue apply to a stream as well.
        self._record = make_route(
            _feeding(self._offer, schema),
            patterns,
            ROUTE_DEFAULTS | {"codec": codec, "max_in_flight": 1, "ordered": False, "queue": queue, "since": since},
            where,
        )
        self._run: RunningApp | None = None
        self._route: CompiledRoute | None = None
        self._offered: list[T] = []
        self._unfinished: Deferred[None] | None = None
        self._waiting: Deferred[None] | None = None
        self._finished = False

    async def __aenter__(self) -> Stream[T]:
        if self._run is not None:
            raise UsageError("this stream was already used: call app.stream(…) once for each `async with` block")
        run = self._running()
        check_loop(run.reactor)
        self._run = run
        self._route = self._run.attach(self._record, surrounded=False)
        # Set at once: a route usually becomes active only after its function has returned a Deferred.
        self._route.flow.activate()
        self._run.open_stream(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._run is not None and self._route is not None:
            self._run.close_stream(self)
            self._run.detach(self._route)
            self._run.discard(self._route, self._unfinished if self._offered else None)
            self._offered.clear()
        # The last message counts as handled, unless it was never taken and has just been dropped.
        self._settle()
        self.finish()

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        if self._run is None:
            raise UsageError("the stream is not open: use `async with app.stream(…) as messages`")
        if self._waiting is not None:
            raise UsageError("another loop already reads this stream: open one stream for each loop")
        self._settle()  # a request for the next message means that the last one has been handled
        if not self._offered and not self._finished:
            self._waiting = Deferred()
            try:
                await as_awaitable(self._waiting)
            finally:
                self._waiting = None
        if not self._offered:
            raise StopAsyncIteration
        return self._offered.pop()

    def finish(self) -> None:
        """End the iteration after the messages that have arrived."""
        self._finished = True
        self._wake()

    def _offer(self, message: T) -> Deferred[None]:
        self._offered.append(message)
        unfinished: Deferred[None] = Deferred()
        self._unfinished = unfinished
        self._wake()
        return unfinished

    def _settle(self) -> None:
        """Mark the last message that was read as handled."""
        if self._unfinished is not None and not self._offered:
            unfinished, self._unfinished = self._unfinished, None
            unfinished.callback(None)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)


def _feeding(offer: Callable[[Any], Deferred[None]], schema: Any) -> Callable[[Any], Deferred[None]]:
    def stream(message: Any) -> Deferred[None]:
        return offer(message)

    stream.__annotations__ = {"message": schema}
    return stream
