"""Make calls in threads, with a timeout, or with retries.

All attempts for a message form one job. Between attempts, the job still counts as an unfinished call, and later
messages of its topic wait. The rules for order, limits and stopping are therefore the same as for all other calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, fail, succeed

from zroute.awaiting import Ended, is_awaitable, within
from zroute.clock import Clock
from zroute.errors import EnvelopeError, Reject, RequestRefused
from zroute.publishing.publication import Emit
from zroute.receiving.dispatch import BoundRoute, DispatchCallbacks
from zroute.receiving.frames import RawFrames

__all__ = ["Attempts", "Executor", "Job", "last_of"]


@attrs.frozen(eq=False)
class Executor:
    """The objects that run the functions of an app.

    Attributes:
        clock: The reactor.
        step: Runs an awaitable to its first wait; see `zroute.awaiting.stepped`.
        in_thread: Runs a function in a thread.
        supply: Takes a hook and the facts of an event, and binds the resources and facts that the hook needs.
        resources: The open resources of the app, by type.
        emit: Publishes dead letters.
        leave: Stops the app because a function, given by its name and line, has raised SystemExit.
        context: The context of the run. Functions get copies of it, so they do not see each other's context variables.
    """

    clock: Clock
    step: Callable[[Awaitable[Any], Context | None], Deferred[Any] | Ended]
    in_thread: Callable[[Callable[[], Any]], Deferred[Any]]
    supply: Callable[[Callable[..., Any], Mapping[Any, Any]], Callable[..., Any]]
    emit: Emit
    leave: Callable[[SystemExit, str, str], None]
    resources: Mapping[Any, Any] = attrs.field(factory=dict)
    context: Context = attrs.field(factory=copy_context)

    def start(self, awaitable: Awaitable[Any]) -> Deferred[Any]:
        """Run an awaitable, and return a Deferred for its result."""
        try:
            running = self.step(awaitable, None)
        except BaseException:
            return fail()
        return succeed(running.value) if isinstance(running, Ended) else running


class Job(Protocol):
    """A call with one or several messages."""

    @property
    def delivery(self) -> BoundRoute:
        """The route and the topic."""

    @property
    def raw(self) -> RawFrames:
        """The frames of the first message."""

    @property
    def attempt(self) -> Callable[[], Any]:
        """The call to make; it may be made several times."""

    @property
    def many(self) -> int:
        """The number of messages."""


class _LastAttemptError(Exception):
    """The failure of the last attempt of a job; ``error`` is the cause."""

    def __init__(self, error: BaseException, attempts: int) -> None:
        super().__init__(error, attempts)
        self.error = error
        self.attempts = attempts


def last_of(error: BaseException) -> tuple[BaseException, int]:
    """Return the error of a handler, and the number of attempts."""
    return (error.error, error.attempts) if isinstance(error, _LastAttemptError) else (error, 1)


class Attempts:
    """The calls of one run that have several attempts, a timeout or a thread.

    Args:
        outcomes: Called for failed attempts that are not the last one.
        executor: Runs awaitables and threads.
    """

    def __init__(self, outcomes: DispatchCallbacks, executor: Executor) -> None:
        self._outcomes = outcomes
        self._executor = executor
        self._pausing: set[Deferred[None]] = set()
        self._stopping = False

    def begin(self, job: Job) -> Deferred[Any]:
        """Make the first call, and return a Deferred for the result."""
        options = job.delivery.route.options
        if options.retry or options.timeout is not None:
            return Deferred.fromCoroutine(self._all(job))
        return self._in_thread(job.attempt)

    def end_retries(self) -> None:
        """Make no further attempts: jobs that wait for their next attempt fail now."""
        self._stopping = True
        # A copy: the callback resumes `_pause` at once, which removes its Deferred from the set.
        for pausing in tuple(self._pausing):
            pausing.callback(None)

    async def _all(self, job: Job) -> Any:
        """Make attempts until one of them succeeds or no retries are left."""
        route = job.delivery.route
        delays = route.options.retry
        attempt = 1
        while True:
            try:
                return await self._one(job)
            except GeneratorExit:  # the coroutine was closed
                raise
            except BaseException as error:
                # Another attempt would end in the same way after a refusal, an unreadable message or SystemExit.
                final = isinstance(error, Reject | RequestRefused | EnvelopeError) or not isinstance(error, Exception)
                final |= self._outcomes.abandoned(job.raw)
                if final or self._stopping or attempt > len(delays):
                    raise _LastAttemptError(error, attempt) from error
                # Python deletes `error` at the end of this block.
                delay, failure = delays[attempt - 1], error
            self._outcomes.attempt_failed(job.delivery, failure, job.many, attempt, delay)
            await self._pause(delay)
            # `end_retries` may have ended the pause early, or the caller of a request gave up during the pause.
            if self._stopping or self._outcomes.abandoned(job.raw):
                raise _LastAttemptError(failure, attempt) from failure
            del failure  # its traceback holds this frame
            route.stats.retried += job.many
            attempt += 1

    async def _pause(self, seconds: float) -> None:
        pausing: Deferred[None] = Deferred()
        timer = self._executor.clock.callLater(seconds, pausing.callback, None)
        self._pausing.add(pausing)
        try:
            await pausing
        finally:
            self._pausing.discard(pausing)
            # Still active if `end_retries` or a cancellation has ended the pause.
            if timer.active():
                timer.cancel()

    async def _one(self, job: Job) -> Any:
        """Make one attempt, and return its result."""
        route = job.delivery.route
        seconds = route.options.timeout
        if route.options.thread:
            return await (self._limited(job, seconds) if seconds else self._in_thread(job.attempt))
        started = self._call(job)
        if type(started) is Ended:
            return started.value
        if not isinstance(started, Deferred):
            return started
        if seconds is None:
            return await started
        late = _late(job, seconds)
        try:
            return await within(seconds, started, self._executor.clock, late)
        except TimeoutError as error:
            # The handler may raise a TimeoutError of its own, which is a failure like any other.
            if error is late:
                route.stats.timed_out += job.many
            raise

    def _call(self, job: Job) -> Any:
        """Make a call in its own context; return its result, or a Deferred for it."""
        return self._executor.context.copy().run(self._started, job.attempt)

    def _started(self, call: Callable[[], Any]) -> Any:
        result = call()
        return self._executor.step(result, None) if is_awaitable(result) else result

    def _in_thread(self, call: Callable[[], Any]) -> Deferred[Any]:
        return self._executor.in_thread(partial(self._executor.context.copy().run, call))

    async def _limited(self, job: Job, seconds: float) -> Any:
        """Make an attempt in a thread; the attempt ends when the thread ends.

        The timeout begins when a thread is free.
        """
        clock, call, route = self._executor.clock, job.attempt, job.delivery.route
        began: list[float] = []
        late: list[TimeoutError] = []

        def timed() -> Any:
            began.append(clock.seconds())
            return call()

        def look() -> None:
            # Without a free thread, the call has not begun: look again after the whole timeout.
            left = began[0] + seconds - clock.seconds() if began else seconds
            if left > 0:
                timers[0] = clock.callLater(left, look)
                return
            late.append(_late(job, seconds))
            route.stats.timed_out += job.many
            self._outcomes.thread_late(job.delivery, job.many)

        timers = [clock.callLater(seconds, look)]
        try:
            result = await self._in_thread(timed)
        except Exception as error:
            if late:
                raise late[0] from error
            raise
        finally:
            if timers[0].active():
                timers[0].cancel()
        if late:
            raise late[0]
        return result


def _late(job: Job, seconds: float) -> TimeoutError:
    return TimeoutError(f"{job.delivery.route.name} did not end within {seconds:g} s")
