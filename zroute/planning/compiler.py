"""Compilation of all groups of an app in one pass, before any socket is opened.

The compiler checks signatures, schemas, duplicates, and publishers without a trigger. The errors name the user's line
(``file:line``).

A group can be included under several prefixes. The group's routes and publications are then compiled once for each
prefix, but its timers, resources and hooks only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from zroute.declarations.batching import plan_lists
from zroute.declarations.bridges import Stack
from zroute.declarations.captures import hashable
from zroute.declarations.providers import Needed
from zroute.declarations.publish_middleware import surround_publication
from zroute.declarations.records import ATTEMPTS, ErrorHook, Hook, Hooks, Producer, Route, RouteInfo
from zroute.declarations.replies import replies_of
from zroute.declarations.resources import CompiledResource, compile_resources, take_message_resources
from zroute.declarations.results import lacks, message_type, misfit
from zroute.declarations.routes import Routes, joined
from zroute.declarations.signatures import NO_BODY, Call, has_copied_return, hints_of, needs_of, plan
from zroute.errors import DuplicateRouteError, PatternError, SchemaError, SetupError, SignatureError
from zroute.functions import identity, is_generator_function, name_of
from zroute.messages.bodies import body_decoder
from zroute.messages.codecs import BUILTIN, Codec, Codecs, is_own
from zroute.messages.extras import Extras
from zroute.messages.frames import Frames
from zroute.messages.schema import describe
from zroute.messages.topics import Pattern
from zroute.messages.wire import Wire
from zroute.planning.plan import CompiledTrigger, Parts, Senders
from zroute.planning.surrounding import surround
from zroute.publishing.middleware import Middleware, SurroundedPublication
from zroute.publishing.publication import Bridge, CompiledPublication, Outlet, Publication, Schedule, bind_encoder
from zroute.receiving.dispatch import CompiledRoute, Surroundings
from zroute.receiving.matching import check_since, recovered_subscriptions
from zroute.receiving.table import Dispatch

if TYPE_CHECKING:
    from zroute.jobs.queue import CompiledJobQueue, JobQueue
    from zroute.requests.requester import CompiledRequester, Requester

__all__ = [
    "bridges_from_outside",
    "compile_route",
    "compile_routes",
    "known_codecs",
    "refuse_dead",
    "refuse_duplicates",
    "with_recover",
]


Group = tuple[str, Routes, tuple[Routes, ...]]
"""The whole prefix of a group, the group, and the chain of groups from this group to the outermost."""


def compile_routes(
    root: Routes,
    *,
    given: Mapping[Any, Any],
    default: Codec,
    extras: Extras,
    dispatch: Dispatch,
    hooks: Hooks,
    skipped: Callable[[], None],
) -> Parts:
    """Compile ``root`` and all groups that it includes.

    Args:
        root: The app, as the outermost group.
        given: The objects that parameters receive by annotation, keyed by type.
        default: The app's codec.
        extras: The additional values that the built-in codecs carry.
        dispatch: The app's ``dispatch``.
        hooks: The hooks of the app.
        skipped: A function that counts a message that publish middleware did not publish.

    Raises:
        SignatureError: A function's signature does not match its use.
        SchemaError: No codec supports a declared type, or two codecs have the same number.
        DuplicateRouteError: Two routes are ambiguous because they match the same topics, or two job queues have the
            same pattern.
        PatternError: A pattern with its prefix is invalid, or nothing fills a capture of a publisher.
    """
    groups = list(root._walk())
    codecs = Codecs(default, {codec.number: codec for codec in BUILTIN.values()}, extras)
    # Resources are compiled first: the analysis of every other function needs their types.
    # Once: a group that is included under several prefixes still opens its resources only once.
    recorded = [resource for _, group, _ in _once(groups) for resource in group._resources]
    resources, given = compile_resources(recorded, given)
    producers = [producer for _, group, _ in _once(groups) for producer in group._producers]
    subscribed = {identity(route.function) for _, group, _ in groups for route in group._routes}
    placed = [
        (prefix, _outlet(publication, prefix, chain, _schema(publication, producers), codecs, skipped))
        for prefix, group, chain in groups
        for publication in group._publications
    ]
    outlets = [outlet for _, outlet in placed]
    bridges = _bridges(groups)
    compiled = list(_routes(groups, producers, placed, bridges, given, resources, codecs, hooks.recover))
    subscribing = [route for route, _ in compiled if route.route.kind == "subscribe"]
    recovered_subscriptions(subscribing)
    check_since(subscribing)
    refuse_duplicates(subscribing, dispatch)
    refuse_duplicates([route for route, _ in compiled if route.route.kind == "reply"], "most_specific")
    refuse_duplicates([route for route, _ in compiled if route.route.kind == "work"], "most_specific")
    queues = tuple(_job_queue(each, prefix, codecs) for prefix, group, _ in groups for each in group._job_queues)
    _refuse_equal_queues(queues)
    # After the checks for duplicates, whose errors name functions without a suffix such as #2.
    routes = _named([route for route, _ in compiled])
    triggers = _triggers(producers, subscribed | _called_outside(groups), outlets, given)
    _refuse_idle_publishers(groups, producers)
    _refuse_what_cannot_be_published(producers, bridges, routes, triggers, outlets, default)
    hooked = {
        identity(hook.function): _needs_of_hook(hook, arguments, given)
        for hook, arguments in _called_with(groups, hooks)
    }
    _refuse_message_resources(resources, triggers, _called_with(groups, hooks), hooked)
    routes = [
        surround(route, factories, resources, given, isolate=hooks.isolate)
        for route, (_, factories) in zip(routes, compiled, strict=True)
    ]
    calls = [route.call for route in routes] + [trigger.call for trigger in triggers]
    needs = [*(call.constants.given for call in calls), *hooked.values()]
    # A resource does not need to open if only other resources use it and a test replaces all of these.
    injected = {value.kind for given in needs for value in given.values() if isinstance(value, Needed)}
    around = [route.around for route in routes]
    injected |= {kind for each in around if each.chain for kind in each.chain.kinds}
    injected |= {one.kind for each in around if each.needs for one in each.needs.resources}
    return Parts(
        handlers=tuple(routes),
        senders=Senders(
            tuple(outlets),
            tuple(_requester(each, prefix, codecs) for prefix, group, _ in groups for each in group._requesters),
            queues,
        ),
        triggers=tuple(triggers),
        resources=tuple(attrs.evolve(one, injected=one.kind in injected) for one in resources),
        hooked=hooked,
        given=given,
        codecs=_codecs(root, codecs),
        middleware=_middleware((root,), RouteInfo("app.publish", "publish", (), None, False, root.where), skipped),
    )


def _called_with(groups: Sequence[Group], hooks: Hooks) -> Iterator[tuple[Hook, tuple[str, ...]]]:
    """Yield all hooks with the names of the arguments that they receive by position."""
    for _, group, _ in _once(groups):
        for error_hook in group._errors:
            yield error_hook, ("error", "envelope")
        for publication in group._publications:
            for hook in publication.subscriber_hooks:
                yield hook, ("number",)
    for hook in (*hooks.startup, *hooks.shutdown):
        yield hook, ()
    for hook in hooks.unrouted:
        yield hook, ("envelope",)
    for hook in hooks.gaps:
        yield hook, ("gap",)


def _needs_of_hook(hook: Hook, arguments: tuple[str, ...], given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the arguments that a hook receives by name.

    An error hook may also have parameters for the route and for the number of attempts.
    """
    named = {}
    if isinstance(hook, ErrorHook):
        route = Needed(RouteInfo)
        given = {**given, RouteInfo: route, RouteInfo | None: route}
        named = {ATTEMPTS: Needed(ATTEMPTS)}
    return needs_of(hook.function, given, arguments, named=named, namespace=hook.namespace, where=hook.where)


def _refuse_message_resources(
    resources: Sequence[CompiledResource],
    triggers: Sequence[CompiledTrigger],
    called: Iterable[tuple[Hook, tuple[str, ...]]],
    hooked: Mapping[object, Mapping[str, Any]],
) -> None:
    """Check that only functions with a message take resources with scope="message".

    Raises:
        SignatureError: A function that is called without a message takes such a resource.
    """
    of_messages = {one.kind for one in resources if one.scope == "message"}
    needed = [(trigger.name, trigger.where, trigger.call.constants.given) for trigger in triggers]
    needed += [(name_of(hook.function), hook.where, hooked[identity(hook.function)]) for hook, _ in called]
    for name, where, given in needed:
        for parameter, value in given.items():
            if isinstance(value, Needed) and value.kind in of_messages:
                raise SignatureError(
                    f"parameter {parameter!r} of {name} needs {describe(value.kind)}, which is open only while a "
                    "handler handles a message (scope='message'): remove scope='message' from the resource; or open "
                    f"the object in {name}",
                    parameter=parameter,
                    where=where,
                )


def _once(groups: Sequence[Group]) -> list[Group]:
    """Return each group once, with its first prefix."""
    seen: dict[int, Group] = {}
    for group in groups:
        seen.setdefault(id(group[1]), group)
    return list(seen.values())


# -- routes ----------------------------------------------------------------------------------------------


def _routes(
    groups: Sequence[Group],
    producers: Sequence[Producer],
    placed: Sequence[tuple[str, CompiledPublication]],
    bridges: Mapping[object, Sequence[Producer]],
    given: Mapping[Any, Any],
    resources: Sequence[CompiledResource],
    codecs: Codecs,
    recover: bool,
) -> Iterator[tuple[CompiledRoute, Sequence[Hook]]]:
    """Compile the routes of all groups, in the order of registration.

    Yield each route with the factories of its middleware.
    """
    for prefix, group, chain in groups:
        errors = tuple(tuple(each._errors) for each in chain)
        for route in group._routes:
            own = _fed_by(route, prefix, group, producers, placed)
            others = bridges.get(identity(route.function), ())
            fed = [Bridge(one.publication, _schema(one.publication, others)) for one in others if one.publication]
            # The middleware of an outer group surrounds that of an inner group, but `chain` begins with the innermost.
            factories = [factory for each in reversed(chain) for factory in each._middleware]
            made = with_recover(route, recover)
            yield compile_route(made, prefix, errors, (*own, *fed), given, resources, codecs), factories


def with_recover(route: Route, default: bool) -> Route:
    """Return a route with the app's ``recover``, unless it has its own.

    ``default`` is the value of the app.
    """
    if not default or route.kind != "subscribe" or route.options.recover is not None:
        return route
    return attrs.evolve(route, options=attrs.evolve(route.options, recover=default))


def compile_route(
    route: Route,
    prefix: str,
    errors: tuple[tuple[ErrorHook, ...], ...],
    outlets: tuple[Outlet, ...],
    given: Mapping[Any, Any],
    resources: Sequence[CompiledResource],
    codecs: Codecs,
) -> CompiledRoute:
    """Compile one route, without its middleware and its message-scoped resources.

    Args:
        route: The recorded route.
        prefix: The whole prefix of its group.
        errors: The error hooks of each of its groups, starting with the innermost group.
        outlets: The publications for the handler's results.
        given: The available objects, or `Needed`, keyed by type.
        resources: The resources of the app.
        codecs: The codecs of the app.

    Raises:
        SignatureError: The function cannot be called with messages of the route.
        SchemaError: The codec does not support the type of the body.
        PatternError: A pattern with the prefix is invalid.
    """
    patterns = tuple(_at(route.where, partial(joined, prefix, pattern)) for pattern in route.patterns)
    if route.options.dead is not None:
        route = _with_dead(route, prefix)
    call = plan(
        route.function,
        captures=patterns[0].captures,
        given=given,
        namespace=route.namespace,
        where=route.where,
        handler=True,
        own_codec=is_own(route.options.codec or codecs.default),
        decorator=route.kind,
    )
    call, needs = take_message_resources(call, resources)
    call, lists = plan_lists(call, route, outlets, patterns[0].captures)
    if call.schema is not NO_BODY:
        _check_schema(call, route, codecs)
    if is_generator_function(route.function) and not outlets and route.kind != "reply":
        raise SignatureError(
            f"{name_of(route.function)} is a generator, but no publisher publishes its values: put a publisher above "
            f"{name_of(route.function)}; or remove the yield",
            where=route.where,
        )
    hooks = tuple(filter(None, errors))
    name = name_of(route.function)
    if route.kind == "reply":
        _check_reply(route, codecs)
    return CompiledRoute(name, route, patterns, call, lists, outlets, Surroundings(hooks, needs))


def _check_reply(route: Route, codecs: Codecs) -> None:
    """Raise an error if the replies of a handler can't be sent."""
    declared = replies_of(route).type
    if declared is NoneType:
        return
    try:
        bind_encoder(declared, route.options.codec, codecs.default, codecs.extras)
    except SchemaError as error:
        raise SchemaError(
            f"the reply of {name_of(route.function)}: {error}", schema=declared, where=route.where
        ) from error


def _requester(requester: Requester[Any, Any], prefix: str, codecs: Codecs) -> CompiledRequester:
    from zroute.requests.client import reply_decoder
    from zroute.requests.requester import CompiledRequester

    pattern = _at(requester.where, partial(joined, prefix, requester.pattern))
    if not pattern.is_template:
        raise PatternError(
            f"requester({requester.pattern.text!r}) can't send requests under the prefix {prefix!r}, which contains a "
            "wildcard: write a capture such as {name} in place of each wildcard",
            pattern=pattern.text,
            where=requester.where,
        )
    try:
        encode, _, _ = bind_encoder(requester.schema, requester.codec, codecs.default, codecs.extras)
        reply_decoder(requester.reply, codecs)
    except SchemaError as error:
        raise SchemaError(
            f"requester {requester.pattern.text!r}: {error}", schema=error.schema, where=requester.where
        ) from error
    return CompiledRequester(requester, pattern, encode)


def _with_dead(route: Route, prefix: str) -> Route:
    """Return the route, with the prefix of its group added to ``dead``."""
    assert route.options.dead is not None
    dead = _behind(prefix, route.options.dead, route.where)
    return attrs.evolve(route, options=attrs.evolve(route.options, dead=dead))


def _behind(prefix: str, dead: Pattern, where: str) -> Pattern:
    """Return the pattern of dead letters, with the prefix of the group added."""
    pattern = _at(where, partial(joined, prefix, dead))
    if not pattern.is_template:
        raise SignatureError(
            f"dead={dead.text!r} can't be published under the prefix {prefix!r}, which contains a wildcard: "
            "replace each wildcard with a capture such as {name}",
            parameter="dead",
            where=where,
        )
    return pattern


def _check_schema(call: Call, route: Route, codecs: Codecs) -> None:
    codec = route.options.codec
    key = call.schema, codec
    # A decoder takes 100 us to make, and an app may have thousands of handlers of one type.
    if hashable(key) and key in codecs.checked:
        return
    try:
        body_decoder(call.schema, stated=None, route=codec, default=codecs.default, extras=codecs.extras)
    except SchemaError as error:
        raise SchemaError(
            f"parameter {call.body!r} of {name_of(route.function)}: {error}", schema=call.schema, where=route.where
        ) from error
    if hashable(key):
        codecs.checked.add(key)


R = TypeVar("R")


def _at(where: str, make: Callable[[], R]) -> R:
    """Call ``make``; add the user's line ``where`` to an error without a line."""
    try:
        return make()
    except SetupError as error:
        error.locate(where)
        raise


def _named(routes: Sequence[CompiledRoute]) -> list[CompiledRoute]:
    """Make the names of the routes unique, for counters and logs.

    The second route with the same function name gets the suffix ``#2``, and so on.
    """
    count: dict[str, int] = {}
    named = []
    for route in routes:
        number = count[route.name] = count.get(route.name, 0) + 1
        named.append(route if number == 1 else attrs.evolve(route, name=f"{route.name}#{number}"))
    return named


_ONLY_ONE = {
    "subscribe": "topics, but dispatch='most_specific' calls only one handler",
    "reply": "requests, but only one handler can answer",
    "work": "jobs, but only one handler gets a job",
}
_VERBS = {"subscribe": "subscribes to", "reply": "answers", "work": "works on"}


def refuse_duplicates(routes: Sequence[CompiledRoute], dispatch: Dispatch) -> None:
    """Raise DuplicateRouteError if two routes are ambiguous.

    With ``dispatch="most_specific"``, two routes are ambiguous if they have patterns of the same shape, because only
    one of them can be called. With any other value, two routes are ambiguous if they also have the same function,
    because a message calls a function at most once.
    """
    seen: dict[object, CompiledRoute] = {}
    for route in routes:
        function = identity(route.route.function)
        for pattern in route.patterns:
            key = pattern.shape if dispatch == "most_specific" else (pattern.shape, function)
            other = seen.get(key)
            seen[key] = route
            if other is not None:
                same = identity(other.route.function) == function
                raise DuplicateRouteError(
                    f"{route.name} {_VERBS[route.route.kind]} {pattern.text!r} twice: remove one of the two "
                    f"registrations (the other one is at {other.route.where})"
                    if same
                    else f"{pattern.text!r} of {route.name} and the pattern of {other.name} at {other.route.where}"
                    f" match the same {_ONLY_ONE[route.route.kind]}: make one of the patterns more specific",
                    where=route.route.where,
                )


def refuse_dead(routes: Sequence[CompiledRoute], wire: Wire | Frames, queues: Sequence[CompiledJobQueue] = ()) -> None:
    """Raise SignatureError for ``dead`` on a wire that does not carry headers."""
    declared = [(route.options.dead, route.route.where) for route in routes]
    declared += [(queue.dead, queue.queue.where) for queue in queues]
    for dead, where in declared:
        if dead is not None and wire != "tracked":
            raise SignatureError(
                f"dead={dead.text!r} needs wire='tracked', but this app has wire={wire!r}, which "
                "can't carry the headers of a dead letter: set wire='tracked'; or remove dead=",
                parameter="dead",
                where=where,
            )


# -- job queues ------------------------------------------------------------------------------------------


def _refuse_equal_queues(queues: Iterable[CompiledJobQueue]) -> None:
    """Raise DuplicateRouteError if two job queues have the same pattern.

    The patterns must be different, because the counters of a queue are stored by its pattern.
    """
    seen: dict[str, CompiledJobQueue] = {}
    for queue in queues:
        other = seen.setdefault(queue.pattern.text, queue)
        if other is not queue:
            raise DuplicateRouteError(
                f"the job queue {queue.pattern.text!r} is declared twice: put all jobs into one of the two queues; or "
                f"give the queues different patterns (the other queue is at {other.queue.where})",
                where=queue.queue.where,
            )


def _job_queue(queue: JobQueue[Any], prefix: str, codecs: Codecs) -> CompiledJobQueue:
    from zroute.jobs.queue import CompiledJobQueue

    pattern = _at(queue.where, partial(joined, prefix, queue.pattern))
    if not pattern.is_template:
        raise PatternError(
            f"job_queue({queue.pattern.text!r}) can't put jobs under the prefix {prefix!r}, which contains a wildcard: "
            "write a capture such as {name} in place of each wildcard",
            pattern=pattern.text,
            where=queue.where,
        )
    dead = None if queue.dead is None else _behind(prefix, queue.dead, queue.where)
    try:
        encode, _, _ = bind_encoder(queue.schema, queue.codec, codecs.default, codecs.extras)
    except SchemaError as error:
        raise SchemaError(
            f"job_queue({queue.pattern.text!r}): {error}", schema=queue.schema, where=queue.where
        ) from error
    return CompiledJobQueue(queue, pattern, dead, encode, queue.schema)


# -- publications ----------------------------------------------------------------------------------------


def _outlet(
    publication: Publication[Any],
    prefix: str,
    chain: tuple[Routes, ...],
    schema: Any,
    codecs: Codecs,
    skipped: Callable[[], None],
) -> CompiledPublication:
    pattern = _at(publication.where, partial(joined, prefix, publication.pattern))
    if not pattern.is_template:
        raise PatternError(
            f"publisher({publication.pattern.text!r}) can't publish under the prefix {prefix!r}, which contains a "
            "wildcard: write a capture such as {name} in place of each wildcard",
            pattern=pattern.text,
            where=publication.where,
        )
    try:
        encode, write, number = bind_encoder(schema, publication.codec, codecs.default, codecs.extras)
    except SchemaError as error:
        raise SchemaError(
            f"publisher {publication.pattern.text!r}: {error}", schema=schema, where=publication.where
        ) from error
    parts = publication, pattern, encode, write, number, schema
    info = RouteInfo(pattern.text, "publish", (pattern.text,), schema, False, publication.where)
    middleware = _middleware(chain, info, skipped)
    return SurroundedPublication(*parts, middleware=middleware) if middleware else CompiledPublication(*parts)


def _middleware(chain: tuple[Routes, ...], info: RouteInfo, skipped: Callable[[], None]) -> Middleware | None:
    """Return the publish middleware around a publication, or None.

    ``chain`` contains the groups, starting with the innermost group.
    """
    factories = [factory for group in reversed(chain) for factory in group._publish_middleware]
    middleware = Middleware(f"{info.name!r} ({info.where})", skipped)
    return middleware if surround_publication(middleware, factories, info) else None


def _schema(publication: Publication[Any], producers: Sequence[Producer]) -> Any:
    """Return the declared type of a publication's messages, or None.

    A publication without a schema has the type that the return annotation of its only function declares.
    """
    if publication.schema is not None:
        return publication.schema
    # Several functions may return different types, so the annotation of one function is not enough.
    functions = [producer for producer in producers if producer.publication is publication]
    if len(functions) != 1:
        return None
    return message_type(_returned(functions[0]))


def _returned(producer: Producer) -> Any:
    """Return the return annotation, or None."""
    return hints_of(producer.function, producer.namespace, producer.where).get("return")


def _fed_by(
    route: Route,
    prefix: str,
    group: Routes,
    producers: Sequence[Producer],
    placed: Sequence[tuple[str, CompiledPublication]],
) -> tuple[CompiledPublication, ...]:
    """Return the publications that receive the results of a handler.

    If a group is included under several prefixes, its handler publishes under the prefix of the received message.
    """
    wanted = [
        producer.publication
        for producer in producers
        if producer.publication and not producer.schedule and identity(producer.function) == identity(route.function)
    ]
    return tuple(
        outlet
        for at, outlet in placed
        if outlet.publication in wanted and (at == prefix or outlet.publication not in group._publications)
    )


# -- triggers --------------------------------------------------------------------------------------------


def _triggers(
    producers: Sequence[Producer],
    subscribed: set[object],
    outlets: Sequence[CompiledPublication],
    given: Mapping[Any, Any],
) -> list[CompiledTrigger]:
    by_function: dict[object, list[Producer]] = {}
    for producer in producers:
        by_function.setdefault(identity(producer.function), []).append(producer)
    triggers = []
    for function, group in by_function.items():
        schedule = _schedule(group)
        if function in subscribed:
            if schedule is not None:
                raise SignatureError(
                    f"{name_of(group[0].function)} has both a subscription and every=, but a timer would call "
                    "the function without a message: write two functions",
                    where=group[0].where,
                )
            continue
        triggers.append(_trigger(group, schedule, outlets, given))
    return triggers


def _bridges(groups: Sequence[Group]) -> dict[object, list[Producer]]:
    """Return the producers from other apps, by the function that they decorate.

    See `zroute.declarations.bridges`.
    """
    own = [group for _, group, _ in groups]
    return {
        stack.key: [producer for group, producer in stack.publishers() if group not in own]
        for stack in _stacks(groups)
        if any(caller in own for caller in stack.callers())
    }


def _called_outside(groups: Sequence[Group]) -> set[object]:
    """Return the functions that only other apps call.

    This app publishes their results.
    """
    own = [group for _, group, _ in groups]
    return {
        stack.key
        for stack in _stacks(groups)
        if stack.callers() and not any(caller in own for caller in stack.callers())
        if any(group in own for group, _ in stack.publishers())
    }


def bridges_from_outside(root: Routes) -> list[tuple[Publication[Any], str]]:
    """Return the publications for results of functions that other apps call.

    Each publication comes with a text: the name of the function, and the apps that call the function.
    """
    groups = list(root._walk())
    own, found = [group for _, group, _ in groups], []
    for stack in _stacks(groups):
        apps = [repr(caller.name) if hasattr(caller, "name") else "another app" for caller in stack.callers()]
        for group, producer in stack.publishers():
            if group in own and producer.publication is not None:
                found.append((producer.publication, f"{name_of(producer.function)} of {' and '.join(apps)}"))
    return found


def _stacks(groups: Sequence[Group]) -> list[Stack]:
    return [stack for _, group, _ in _once(groups) for stack in group._stacks]


def _schedule(group: Sequence[Producer]) -> Schedule | None:
    schedules = {producer.schedule for producer in group if producer.schedule is not None}
    if len(schedules) > 1:
        raise SignatureError(
            f"{name_of(group[0].function)} has publishers with different schedules: use the same every, jitter and "
            "initial_delay for all of them; or write one function for each publisher",
            parameter="every",
            where=group[0].where,
        )
    return next(iter(schedules), None)


def _trigger(
    group: Sequence[Producer],
    schedule: Schedule | None,
    outlets: Sequence[CompiledPublication],
    given: Mapping[Any, Any],
) -> CompiledTrigger:
    first = group[0]
    name = name_of(first.function)
    if schedule is None and not is_generator_function(first.function):
        raise SignatureError(
            f"nothing calls {name}: set every= in its publisher; or make {name} a generator; or add @app.subscribe "
            f"above {name}",
            where=first.where,
        )
    call = plan(first.function, captures=(), given=given, namespace=first.namespace, where=first.where)
    wanted = call.body or call.envelope or next(iter(call.constants.topic), None)
    if wanted:
        raise SignatureError(
            f"{name} is called without a message, so no argument is available for its parameter {wanted!r}: remove the "
            "parameter; or subscribe the function to a pattern; or write an @app.resource that yields the parameter's "
            "type",
            parameter=wanted,
            where=first.where,
        )
    # One call serves all publishers above the function: each of them publishes every result.
    publications = [producer.publication for producer in group]
    fed = tuple(outlet for outlet in outlets if outlet.publication in publications)
    return CompiledTrigger(name, first.where, call, fed, schedule)


def _refuse_idle_publishers(groups: Sequence[Group], producers: Sequence[Producer]) -> None:
    used = {id(producer.publication) for producer in producers}
    for _, group, _ in groups:
        for publication in group._publications:
            if publication.schedule is not None and id(publication) not in used:
                raise SignatureError(
                    f"publisher({publication.pattern.text!r}, every=…) has no function to call: put the publisher "
                    "above a function",
                    parameter="every",
                    where=publication.where,
                )


def _refuse_what_cannot_be_published(
    producers: Sequence[Producer],
    bridges: Mapping[object, Sequence[Producer]],
    routes: Sequence[CompiledRoute],
    triggers: Sequence[CompiledTrigger],
    outlets: Sequence[CompiledPublication],
    default: Codec,
) -> None:
    """Raise an error if a publisher cannot publish what its functions return.

    Publishers with a user-defined codec are not checked, because such a codec may accept any type.
    """
    hints = {}
    for producer in (*producers, *(one for outside in bridges.values() for one in outside)):
        # The wrapper may change the results, so the copied annotation of the inner function is not used.
        hint = None if has_copied_return(producer.function) else _returned(producer)
        hints[identity(producer.function)] = hint
        if producer.publication is not None and _is_strict(producer.publication, default):
            _refuse_misfit(producer.function, producer.publication, hint)
    for publication in [outlet.publication for outlet in outlets]:
        if publication.snapshot is not None and _is_strict(publication, default):
            _refuse_misfit(publication.snapshot.make, publication, publication.snapshot.returns)
    for call, fed, patterns in (
        *((route.call, route.outlets, route.patterns) for route in routes),
        *((trigger.call, trigger.outlets, ()) for trigger in triggers),
    ):
        for outlet in fed:
            if _is_strict(outlet.publication, default):
                _refuse_unfilled(call.function, hints[identity(call.function)], outlet, patterns)


def _is_strict(publication: Publication[Any], default: Codec) -> bool:
    return not is_own(publication.codec or default)


def _refuse_misfit(function: Callable[..., Any], publication: Publication[Any], hint: Any) -> None:
    found = misfit(hint, publication.schema) if publication.schema is not None else None
    if found is not None:
        schema, pattern = describe(publication.schema), publication.pattern.text
        verb = "yields" if is_generator_function(function) else "returns"
        raise SignatureError(
            f"{name_of(function)} {verb} {describe(found)}, but publisher({pattern!r}, {schema}) publishes "
            f"{schema}: change the return annotation or the schema (to publish nothing, return None)",
            where=publication.where,
        )


def _refuse_unfilled(function: Callable[..., Any], hint: Any, outlet: Outlet, patterns: Sequence[Pattern]) -> None:
    """Raise PatternError if no message fills a capture of the publisher.

    Captures are filled from the topic of the received message and from the fields of the published message.
    """
    for pattern in patterns:
        if pattern.rest in outlet.pattern.captures:
            raise PatternError(
                f"{name_of(function)} publishes to {outlet.pattern.text!r}, but {{{pattern.rest}}} can be several "
                "segments "
                f"of a topic of {pattern.text!r}: capture single segments; or call app.publish(topic, message)",
                pattern=outlet.pattern.text,
                where=outlet.publication.where,
            )
    kinds = [kind for kind in (message_type(hint), outlet.schema) if kind is not None]
    captured = patterns[0].captures if patterns else ()
    for name in outlet.pattern.captures:
        if name not in captured and kinds and all(lacks(kind, name) for kind in kinds):
            came = f"{patterns[0].text!r} has no such capture" if patterns else f"{name_of(function)} gets no message"
            raise PatternError(
                f"{name_of(function)} publishes to {outlet.pattern.text!r}, but nothing fills {{{name}}}: {came}, and "
                f"{describe(kinds[0])} has no field {name!r}; add this field to the type; or capture {{{name}}} in a "
                f"subscription; or call publish(…, {name}=…) in the function",
                pattern=outlet.pattern.text,
                where=outlet.publication.where,
            )


# -- codecs ----------------------------------------------------------------------------------------------


def _codecs(root: Routes, known: Codecs) -> Codecs:
    """Return all codecs that the app uses or that a peer may use."""
    named: list[tuple[Codec, str | None]] = [(known.default, None)]
    for _, group, _ in root._walk():
        named += [(route.options.codec, route.where) for route in group._routes if route.options.codec]
        named += [(publication.codec, publication.where) for publication in group._publications if publication.codec]
        named += [(requester.codec, requester.where) for requester in group._requesters if requester.codec]
        named += [(queue.codec, queue.where) for queue in group._job_queues if queue.codec]
    return known_codecs(known, named)


def known_codecs(known: Codecs, named: Sequence[tuple[Codec, str | None]]) -> Codecs:
    """Return ``known`` with the ``named`` codecs added.

    ``named`` contains each codec with the user's line that names it.

    Raises:
        SchemaError: Two codecs have the same number.
    """
    by_number = dict(known.by_number)
    for codec, where in named:
        other = by_number.setdefault(codec.number, codec)
        if (type(other), other.name) != (type(codec), codec.name):  # two objects of one class are one codec
            raise SchemaError(
                f"codecs {other.name!r} and {codec.name!r} have the same number {codec.number} on the wire: "
                "give one of the two codecs another number, from 128 to 255",
                schema=codec,
                where=where,
            )
    return attrs.evolve(known, by_number=by_number)
