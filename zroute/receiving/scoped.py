"""Resources with ``scope="message"``, which are open during a handler's call.

A resource is a generator function. zroute opens it by running it to its first value. When the handler has ended, the
generator continues; if the handler failed, its error is raised in the generator. The resource closes before the result
is published, so a failed commit counts as an error of the handler. A resource can't hide an error: if the generator
does not raise the error again, zroute does.

`contextlib` runs these generators; this module decides when they open and close.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import attrs

from zroute.awaiting import awaitable_anywhere, is_awaitable
from zroute.functions import is_async_generator_function, is_coroutine_function, is_generator_function
from zroute.publishing.producers import close_values

__all__ = ["Opening", "Scope", "scoped"]


@attrs.frozen(eq=False)
class Opening:
    """The plan to open one resource.

    Attributes:
        kind: The type that the resource yields.
        function: The generator function, with the resources of the app bound.
        needs: For each remaining parameter, the type of the message resource that it receives.
        is_async: True for an async generator function.
        manager: Returns the context manager of one object. It is created in advance, because that takes longer than a
            call.
    """

    kind: Any
    function: Callable[..., Any]
    needs: Mapping[str, Any]
    is_async: bool
    manager: Callable[..., Any] = attrs.field(init=False)

    @manager.default
    def _manager(self) -> Callable[..., Any]:
        return (asynccontextmanager if self.is_async else contextmanager)(self.function)


@attrs.frozen(eq=False)
class Scope:
    """The resources that are opened for one call.

    Attributes:
        openings: The plans to open the resources, in opening order.
        parameters: For each parameter of the handler, the type of the resource that it receives.
        replaced: The objects that a test provides instead of resources, by type.
        around_chain: True if the resources must be open while the middleware runs, because a link needs one of them.
            Otherwise they are only open during the call of the handler.
    """

    openings: Sequence[Opening]
    parameters: Mapping[str, Any]
    replaced: Mapping[Any, Any]
    around_chain: bool

    def pass_on(self, opened: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the open resources as arguments for the call."""
        objects = {**self.replaced, **opened}
        if self.around_chain:
            return {"opened": objects}
        return self.of_handler(objects)

    def of_handler(self, objects: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the arguments of the handler, from objects by type."""
        return {name: objects[kind] for name, kind in self.parameters.items()}

    def enter(self, stack: ExitStack) -> Mapping[str, Any]:
        """Open all resources, which must be plain generators; return the arguments."""
        opened: dict[Any, Any] = {}
        for one in self.openings:
            opened[one.kind] = stack.enter_context(one.manager(**_needed(one, opened)))
        return self.pass_on(opened)

    async def enter_async(self, stack: AsyncExitStack) -> Mapping[str, Any]:
        """Open all resources, and return the arguments."""
        opened: dict[Any, Any] = {}
        for one in self.openings:
            if one.is_async:
                opened[one.kind] = await stack.enter_async_context(one.manager(**_needed(one, opened)))
            else:
                opened[one.kind] = stack.enter_context(one.manager(**_needed(one, opened)))
        return self.pass_on(opened)


def _needed(one: Opening, opened: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: opened[kind] for name, kind in one.needs.items()}


def scoped(function: Callable[..., Any], scope: Scope, kind: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ``function`` with the resources of ``scope`` open.

    ``kind`` is the user's function, whose kind determines when a call ends: when the function returns, or when the
    coroutine, generator or Deferred that it returns has ended.
    """
    late = any(one.is_async for one in scope.openings)
    if late or is_coroutine_function(kind) or is_async_generator_function(kind):
        if is_generator_function(kind):
            return partial(_async_values, function, scope)
        return partial(_async_call, function, scope)
    return partial(_values if is_generator_function(kind) else _call, function, scope)


class _Unhidden:
    """Raises the error of a handler again if a resource has hidden it.

    Each function below records the error itself. Two callbacks of the stack would have the same effect, but take a
    third longer.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def _call(function: Callable[..., Any], scope: Scope, *given: Any, **named: Any) -> Any:
    seen = _Unhidden()
    with ExitStack() as stack:
        arguments = scope.enter(stack)
        try:
            result = function(*given, **named, **arguments)
            # `pop_all` moves the resources out of this `with` block, which then closes nothing.
            if is_awaitable(result):  # a plain function may return a Deferred: the call ends with it
                return _end_later(result, stack.pop_all())
        except BaseException as error:
            seen.error = error
            raise
    seen.check()
    return result


async def _end_later(result: Awaitable[Any], stack: ExitStack) -> Any:
    seen = _Unhidden()
    with stack:
        try:
            value = await awaitable_anywhere(result)
        except BaseException as error:
            seen.error = error
            raise
    seen.check()
    return value


async def _async_call(function: Callable[..., Any], scope: Scope, *given: Any, **named: Any) -> Any:
    seen = _Unhidden()
    async with AsyncExitStack() as stack:
        arguments = await scope.enter_async(stack)
        try:
            result = function(*given, **named, **arguments)
            if is_awaitable(result):
                result = await awaitable_anywhere(result)
        except BaseException as error:
            seen.error = error
            raise
    seen.check()
    return result


def _values(function: Callable[..., Any], scope: Scope, *given: Any, **named: Any) -> Iterator[Any]:
    seen = _Unhidden()
    with ExitStack() as stack:
        arguments = scope.enter(stack)
        values: Generator[Any, None, None] = function(*given, **named, **arguments)
        try:
            yield from values
        except BaseException as error:
            seen.error = error
            raise
    seen.check()


async def _async_values(function: Callable[..., Any], scope: Scope, *given: Any, **named: Any) -> AsyncIterator[Any]:
    seen = _Unhidden()
    async with AsyncExitStack() as stack:
        arguments = await scope.enter_async(stack)
        values: Any = function(*given, **named, **arguments)
        try:
            # A plain generator too: `scoped` uses this function if one of the resources is async.
            if hasattr(values, "__anext__"):
                async for value in values:
                    yield value
            else:
                for value in values:
                    yield value
        except BaseException as error:
            seen.error = error
            raise
        # `async for` does not close a generator when the loop is left, unlike `yield from`.
        finally:
            await close_values(values)
    seen.check()
