"""Middleware: functions around the handlers of a run.

A chain of middleware functions, the links, is created once for each route, when the app is compiled. Each factory gets
the ``call`` of the next inner link. A link therefore can't store data that depends on the topic or the message. It
reads this data from `Here`, the value of a context variable in the context of the message.

- **A plain handler** is called at once. All messages of a topic share one `Here`, because each message begins only
  after the previous one has ended. The variable is set in one context per topic, and each message gets a copy of that
  context. A message therefore costs one copy of a context and one look-up.
- **Any other handler** (async, in a thread, with ``batch``, ``retry`` …) is called later by
  `zroute.receiving.in_flight`, in a copy of the run's context. Its messages may overlap, so each message sets its own
  `Here` in that copy.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context, ContextVar, copy_context
from typing import Any

import attrs

from zroute.awaiting import awaitable_anywhere, is_awaitable
from zroute.codegen import define
from zroute.errors import UsageError
from zroute.messages.topics import Topic
from zroute.messages.wire import Envelope
from zroute.receiving.frames import RawFrames
from zroute.receiving.scoped import Scope, scoped

__all__ = ["Chain", "Here", "Skipped", "Waiting", "awaited", "finished", "from_here", "here", "innermost", "link"]


@attrs.define(eq=False)
class Here:
    """The message for which a chain is called.

    Attributes:
        function: The handler with its constant arguments, which are the same for all messages of the topic.
        topic: The topic.
        envelope: A function that returns the envelope for the frames.
        resources: The resources of the app, by type.
        names: The factories and their lines, for errors.
        objects: All resources that the chain may use, by type.
        raw: The frames of the message; only valid if a link or the handler needs them.
        called: True if the handler was called; None after the call of the chain has ended.
    """

    function: Callable[..., Any]
    topic: Topic
    envelope: Callable[[RawFrames], Envelope]
    resources: Mapping[Any, Any]
    names: str
    objects: Mapping[Any, Any] = attrs.field(init=False)
    raw: RawFrames = b""
    called: bool | None = False

    @objects.default
    def _objects(self) -> Mapping[Any, Any]:
        return self.resources

    def clear(self) -> None:
        """Release the message and its resources, and refuse further calls.

        Otherwise, the message would stay in memory until the next message of the topic, possibly for a long time.
        """
        self.called, self.raw, self.objects = None, b"", self.resources


here: ContextVar[Here] = ContextVar("zroute.message")
"""The message that the code in the current context is handling."""


@attrs.frozen(eq=False)
class Chain:
    """The middleware of one route.

    Attributes:
        outermost: The function to call with a message, or with a list of messages.
        needs_frames: True if a link or the handler needs the frames of the message.
        kinds: The types of the resources that the links need.
        names: The factories and their lines, for errors.
    """

    outermost: Callable[[Any], Any]
    needs_frames: bool
    kinds: frozenset[Any]
    names: str

    def _scoped(self, scope: Scope | None, handler: Callable[..., Any]) -> Callable[[Any], Any]:
        """Return the function to call with a message.

        The function opens the resources of the message if a link needs one of them.
        """
        outermost = self.outermost
        if scope is None or not scope.around_chain:
            return outermost

        def noted(message: Any, opened: Mapping[Any, Any]) -> Any:
            current = here.get()
            current.objects = {**current.resources, **opened}
            return outermost(message)

        return scoped(noted, scope, handler)

    def enter_at_once(self, current: Here, scope: Scope | None, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that calls a plain handler.

        ``current`` is the message in the context in which the function is called.
        """
        outermost = self._scoped(scope, handler)

        def enter(message: Any, raw: RawFrames = b"") -> Any:
            current.called, current.raw = False, raw
            try:
                # Copied after the call: an awaitable result continues with the variables that the middleware has set.
                return finished(outermost(message), current, copy_context())
            except BaseException:
                current.clear()
                raise

        return enter

    def enter_later(
        self, shared: Here, scope: Scope | None, handler: Callable[..., Any], *, lists: bool
    ) -> Callable[..., Any]:
        """Return the function that calls any other handler.

        The function sets the message in the context in which it is called. ``lists`` is True for a handler with
        ``batch``.
        """
        outermost = self._scoped(scope, handler)

        def enter(message: Any, raw: RawFrames = b"") -> Any:
            current = attrs.evolve(shared, raw=raw)
            # Needs no reset: this context belongs to one message.
            here.set(current)
            many = len(message) if lists else 1
            waits = False
            try:
                result = outermost(message)
                # `_finish` still needs the message, and clears it at the end.
                if waits := is_awaitable(result):
                    return _finish(result, current, many)
                return result if current.called else Skipped(result, many)
            finally:
                if not waits:
                    current.clear()

        return enter


@attrs.frozen(eq=False)
class Skipped:
    """The result of a middleware that did not call the handler.

    The messages are counted in the reactor's thread, when the call has ended without an error.

    Attributes:
        result: The return value of the middleware.
        many: The number of messages.
    """

    result: Any
    many: int


@attrs.frozen(eq=False)
class Waiting:
    """An awaitable result of a plain function, to await in its context.

    Attributes:
        result: The awaitable.
        context: The context.
    """

    result: Awaitable[Any]
    context: Context


def finished(result: Any, current: Here, context: Context) -> Any:
    """Return the result of a call of a plain handler that was made in ``context``.

    An awaitable result keeps ``current``. Later messages of the topic are then called later, and each gets its own
    `Here`.
    """
    if result is not None and is_awaitable(result):
        return Waiting(_finish(result, current, 1), context)
    called = current.called
    current.clear()
    return result if called else Skipped(result, 1)


async def _finish(result: Awaitable[Any], current: Here, many: int) -> Any:
    """Wait for the result. While waiting, the middleware may call the handler.

    Raises:
        UsageError: The result is itself an awaitable, so the handler has not ended, or has not even begun.
    """
    try:
        value = await awaitable_anywhere(result)
        if value is not None and is_awaitable(value):
            if inspect.iscoroutine(value):
                # Python would warn that the coroutine was never awaited.
                _close(value)
            raise UsageError(
                f"{current.names} returned a {type(value).__name__} without awaiting it, so the handler has not "
                "ended: write return await call(message) in async def around(message)"
            )
        return value if current.called else Skipped(value, many)
    finally:
        current.clear()


def _close(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Close a coroutine that has not begun, and those that are its arguments.

    Python would otherwise warn of the arguments, such as the coroutine of the handler, at some later time.
    """
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        for argument in inspect.getcoroutinelocals(coroutine).values():
            if inspect.iscoroutine(argument):
                _close(argument)
    coroutine.close()


def from_here(function: Callable[..., Any], scope: Scope, *given: Any, **named: Any) -> Any:
    """Call the handler with the resources that were opened before its middleware."""
    return function(*given, **named, **scope.of_handler(here.get().objects))


async def awaited(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Call a plain handler whose middleware awaits it.

    The middleware awaits a plain handler that takes an async resource. This function is used if that resource is
    already open, or if a test has replaced it.
    """
    result = function(*given, **named)
    return await awaitable_anywhere(result) if is_awaitable(result) else result


def innermost(arguments: Mapping[str, str]) -> Callable[[Any], Any]:
    """Return the ``call`` of the innermost link, which calls the handler.

    ``arguments`` contains the expression for each parameter. The expressions use ``message`` and ``at``, the current
    `Here`. The key "" is the positional argument.
    """
    # For a handler of a body and an envelope, the last line of the source is:
    # return at.function(message, envelope=at.envelope(at.raw))
    source = f"""
def call(message=None):
    try:
        at = here()
    except LookupError:
        raise outside() from None
    if at.called is None:
        raise outside()
    at.called = True
    return at.function({_joined(arguments)})
"""
    made: Callable[[Any], Any] = define(source, "call", {"here": here.get, "outside": _outside})
    return made


def link(around: Callable[..., Any], arguments: Mapping[str, str], kinds: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a function that calls ``around`` and takes only the message.

    ``arguments`` has the same form as in `innermost`. The expressions may also use the resource types in ``kinds``.
    """
    # For a middleware of a message and a resource, the last line of the source is:
    # return around(message, database=at.objects[k0])
    source = f"""
def link(message):
    try:
        at = here()
    except LookupError:
        raise outside() from None
    if at.called is None:
        raise outside()
    return around({_joined(arguments)})
"""
    made: Callable[[Any], Any] = define(
        source, "link", {"here": here.get, "outside": _outside, "around": around, **kinds}
    )
    return made


def _outside() -> UsageError:
    return UsageError(
        "a middleware called call(message) after around(message) had ended, or outside the context of its "
        "message (for example in a callback of a Deferred, a task or another thread): call call(message) inside "
        "around(message), and await it there if the handler is async"
    )


def _joined(arguments: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" if name else value for name, value in arguments.items())
