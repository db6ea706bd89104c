"""Compilation of the middleware and the message-scoped resources of a handler.

This module calls the user's factories, and checks the results.

The links of a chain are called for each message, so their code is generated. The generated code contains all facts that
are known in advance: the parameters of `around`, and the source of each argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from zroute.declarations.providers import Needed
from zroute.declarations.publish_middleware import make_around
from zroute.declarations.records import Hook, RouteInfo
from zroute.declarations.resources import CompiledResource, MessageResources, opened_for
from zroute.declarations.signatures import NO_BODY, Call, plan, unfilled
from zroute.errors import SignatureError
from zroute.functions import is_coroutine_function, is_generator_function, name_of
from zroute.messages.schema import describe
from zroute.receiving.around import Chain, innermost, link
from zroute.receiving.dispatch import CompiledRoute

__all__ = ["surround"]

_BOTH_KINDS = "check route.is_async to distinguish async handlers from plain handlers"


def surround(
    route: CompiledRoute,
    factories: Sequence[Hook],
    resources: Sequence[CompiledResource],
    given: Mapping[Any, Any],
    *,
    isolate: bool,
) -> CompiledRoute:
    """Return ``route`` with its middleware and its message-scoped resources.

    Args:
        route: The route, with its final name.
        factories: The functions under ``@app.middleware`` and ``@routes.middleware``; the first one is outermost.
        resources: All resources of the app, in opening order.
        given: The available objects, or `Needed`, keyed by type.
        isolate: True if each message gets its own context even without middleware.

    Raises:
        SignatureError: A factory or its result can't be called as middleware, or the resources can't be opened for this
            handler.
    """
    route = _woven(route, factories, given)
    needs, chain = route.around.needs, route.around.chain
    around = opened_for(chain.kinds, resources) if chain is not None else ()
    if around:
        parameters = needs.parameters if needs is not None else {}
        opened = opened_for((*parameters.values(), *(one.kind for one in around)), resources)
        needs = MessageResources(parameters, opened, around_chain=True)
    if needs is not None:
        _refuse_unfit(route, needs)
    isolated = isolate or chain is not None or needs is not None
    if not isolated:  # nothing surrounds the calls
        return route
    return attrs.evolve(route, around=attrs.evolve(route.around, needs=needs, isolated=isolated))


def _refuse_unfit(route: CompiledRoute, needs: MessageResources) -> None:
    late = next((resource for resource in needs.resources if resource.is_async), None)
    if route.options.thread and late is not None:
        raise SignatureError(
            f"{route.name} runs in a thread, which can't open its async resource {late.name} at {late.where}: write "
            f"the resource as a plain generator; or make {route.name} async, without thread=True",
            parameter="thread",
            where=route.route.where,
        )
    if needs.around_chain and is_generator_function(route.function):
        raise SignatureError(
            f"a middleware of {route.name} needs {describe(needs.resources[-1].kind)} (scope='message'), but "
            f"{route.name} is a generator and runs after its middleware has ended: in the middleware, return "
            "call if route.is_generator is True",
            where=route.route.where,
        )


def _woven(route: CompiledRoute, factories: Sequence[Hook], given: Mapping[Any, Any]) -> CompiledRoute:
    call = handler = innermost(_arguments_of_handler(route))
    needs_frames = bool(route.call.envelope)
    kinds: set[Any] = set()
    names: list[str] = []
    # From the inside out: each factory receives the `call` of the next inner link.
    for factory in reversed(factories):
        around = make_around(factory, call, route.info, "def timed(call, route)", "middleware")
        if around is call:
            continue
        planned = _plan(around, factory, route, given)
        needs_frames = needs_frames or bool(planned.envelope)
        kinds |= set(planned.needs)
        names.append(f"{name_of(factory.function)} at {factory.where}")
        call = _linked(around, planned)
    if call is handler:
        return route
    chain = Chain(call, needs_frames, frozenset(kinds), " or ".join(reversed(names)))
    return attrs.evolve(route, around=attrs.evolve(route.around, chain=chain))


def _arguments_of_handler(route: CompiledRoute) -> dict[str, str]:
    call = route.call
    arguments = {}
    if call.schema is not NO_BODY:
        arguments[call.body if call.by_name and call.body else ""] = "message"
    if call.envelope:
        arguments[call.envelope] = "at.envelope(at.raw)"
    return arguments


def _plan(around: Any, factory: Hook, route: CompiledRoute, given: Mapping[Any, Any]) -> Call:
    """Return the plan for calls of ``around``, the result of ``factory``."""
    name, where = name_of(factory.function), factory.where
    if not callable(around):
        raise SignatureError(
            f"{name} returned {around!r} for {route.name}, not a function: return a function such as def "
            "around(message); or return call to leave the handler unchanged",
            where=where,
        )
    _check_kind(around, route.info, name, where)
    _check_parameters(around, factory, route, given)
    planned = plan(
        around, captures=(), given=given, namespace=factory.namespace, where=where, handler=True, own_codec=True
    )
    if planned.body is None:
        raise SignatureError(
            f"{name} returned {name_of(around)}, which has no parameter for the message: write def around(message)",
            where=where,
        )
    if route.lists is not None and (planned.envelope or (planned.constants.topic and not route.lists.one_topic)):
        wanted = planned.envelope or planned.constants.topic[0]
        raise SignatureError(
            f"parameter {wanted!r} of {name_of(around)} needs a single message, but {route.name} receives lists of "
            f"messages (batch=): in {name}, return call if route.is_batch is True",
            parameter=wanted,
            where=where,
        )
    return planned


def _check_parameters(
    around: Callable[..., Any], factory: Hook, route: CompiledRoute, given: Mapping[Any, Any]
) -> None:
    """Raise SignatureError if two parameters of ``around`` would receive the message."""
    name, where = name_of(factory.function), factory.where
    left = unfilled(around, given=given, namespace=factory.namespace, where=where)
    if len(left) < 2:
        return
    captured = next((each for each in left if each in route.patterns[0].captures), None)
    parameter = left[1] if captured is None else captured
    reason = (
        f"would both receive the message of {route.name}: write def around(message), and annotate further parameters "
        "as Topic, Envelope or the type of a resource"
        if captured is None
        else f"would both receive the message: middleware does not receive captures such as {captured!r} of "
        f"{route.name}; "
        f"replace {captured!r} with a parameter topic: Topic"
    )
    raise SignatureError(
        f"{name} returned {name_of(around)}, whose parameters {left[0]!r} and {left[1]!r} {reason}",
        parameter=parameter,
        where=where,
    )


def _check_kind(around: Callable[..., Any], info: RouteInfo, name: str, where: str) -> None:
    if is_generator_function(around):
        raise SignatureError(
            f"{name} returned {name_of(around)}, which is a generator: write a function that returns call(message)",
            where=where,
        )
    if is_coroutine_function(around) is info.is_async:
        return
    if info.is_async:
        remedy = "write async def around(message), and return await call(message)"
        raise SignatureError(
            f"{name} returned {name_of(around)}, which is not async, but {info.name} at {info.where} is async, so "
            f"{name_of(around)} would end before the handler ends: {remedy}; {_BOTH_KINDS}",
            where=where,
        )
    raise SignatureError(
        f"{name} returned {name_of(around)}, which is async, but {info.name} at {info.where} is not async: write def "
        f"around(message), and return call(message); {_BOTH_KINDS}",
        where=where,
    )


def _linked(around: Callable[..., Any], planned: Call) -> Callable[[Any], Any]:
    """Return ``around`` as a function that takes only the message."""
    arguments = {planned.body if planned.by_name and planned.body else "": "message"}
    arguments |= dict.fromkeys(planned.constants.topic, "at.topic")
    if planned.envelope:
        arguments[planned.envelope] = "at.envelope(at.raw)"
    names: dict[str, Any] = {}
    for number, (parameter, value) in enumerate(planned.constants.given.items()):
        is_needed = isinstance(value, Needed)
        names[f"k{number}"] = value.kind if is_needed else value
        arguments[parameter] = f"at.objects[k{number}]" if is_needed else f"k{number}"
    # The chain can call the user's function itself, which saves a call for each message.
    if arguments == {"": "message"}:
        return around
    if "" in arguments:  # other parameters may precede the message
        arguments[planned.body or ""] = arguments.pop("")
    return link(around, arguments, names)
