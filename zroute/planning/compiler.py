"""Compilation of all groups of an app, in one pass before the app opens anything.

The compiler checks signatures, schemas, duplicates, and publishers without a trigger. Its errors name the user's line
(``file:line``).

A group can be included under several prefixes. Its routes and publications are then compiled once for each prefix, but
its timers, resources and hooks only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import attrs

from zroute.declarations.batching import plan_lists
from zroute.declarations.records import ErrorHook, Hook, Hooks, Producer, Route
from zroute.declarations.resources import compile_resources
from zroute.declarations.results import lacks, message_type, misfit
from zroute.declarations.routes import Routes, joined
from zroute.declarations.signatures import NO_BODY, Call, Needed, has_copied_return, hints_of, needs_of, plan
from zroute.errors import DuplicateRouteError, PatternError, SchemaError, SetupError, SignatureError
from zroute.functions import identity, is_generator_function, name_of
from zroute.messages.bodies import body_decoder
from zroute.messages.codecs import BUILTIN, Codec, Codecs
from zroute.messages.schema import describe
from zroute.messages.topics import Pattern
from zroute.planning.plan import CompiledTrigger, Parts
from zroute.publishing.publication import CompiledPublication, Publication, Schedule, bind_encoder
from zroute.receiving.dispatch import CompiledRoute
from zroute.receiving.table import Dispatch

__all__ = [
    "compile_route",
    "compile_routes",
    "known_codecs",
    "refuse_duplicates",
]


Group = tuple[str, Routes, tuple[Routes, ...]]
"""A group's whole prefix, the group, and its chain of groups from itself to the outermost."""


def compile_routes(
    root: Routes, *, given: Mapping[Any, Any], default: Codec, dispatch: Dispatch, hooks: Hooks
) -> Parts:
    """Compile ``root`` and all groups that it includes.

    Args:
        root: The app, as the outermost group.
        given: For each type that is filled by annotation, the object that parameters receive.
        default: The app's codec.
        dispatch: The app's ``dispatch``.
        hooks: The hooks of the app.

    Raises:
        SignatureError: A function's signature does not fit its use.
        SchemaError: No codec supports a declared type, or two codecs have the same number.
        DuplicateRouteError: Two routes match the same topics in a way that is ambiguous.
        PatternError: A pattern with its prefix is invalid, or nothing fills a capture of a publisher.
    """
    groups = list(root._walk())
    # Resources come first: the analysis of every other function needs their types.
    recorded = [resource for _, group, _ in _once(groups) for resource in group._resources]
    resources, given = compile_resources(recorded, given)
    producers = [producer for _, group, _ in _once(groups) for producer in group._producers]
    subscribed = {identity(route.function) for _, group, _ in groups for route in group._routes}
    placed = [
        (prefix, _outlet(publication, prefix, _schema(publication, producers), default))
        for prefix, group, _ in groups
        for publication in group._publications
    ]
    outlets = [outlet for _, outlet in placed]
    routes = list(_routes(groups, producers, placed, given, default))
    refuse_duplicates(routes, dispatch)
    triggers = _triggers(producers, subscribed, outlets, given)
    _refuse_idle_publishers(groups, producers)
    _refuse_what_cannot_be_published(producers, routes, triggers, default)
    hooked = {
        identity(hook.function): needs_of(hook.function, given, arguments, namespace=hook.namespace, where=hook.where)
        for hook, arguments in _called_with(groups, hooks)
    }
    calls = [route.call for route in routes] + [trigger.call for trigger in triggers]
    needs = [*(call.constants.given for call in calls), *hooked.values()]
    # A resource that only other resources use need not open if a test replaces those.
    injected = {value.kind for given in needs for value in given.values() if isinstance(value, Needed)}
    return Parts(
        routes=tuple(_named(routes)),
        outlets=tuple(outlets),
        triggers=tuple(triggers),
        resources=tuple(attrs.evolve(one, injected=one.kind in injected) for one in resources),
        hooked=hooked,
        given=given,
        codecs=_codecs(root, default),
    )


def _called_with(groups: Sequence[Group], hooks: Hooks) -> Iterator[tuple[Hook, tuple[str, ...]]]:
    """Yield all hooks with the names of the arguments that they receive by position."""
    for _, group, _ in _once(groups):
        for error_hook in group._errors:
            yield error_hook, ("error", "envelope")
    for hook in (*hooks.startup, *hooks.shutdown):
        yield hook, ()
    for hook in hooks.unrouted:
        yield hook, ("envelope",)
    for hook in hooks.gaps:
        yield hook, ("gap",)


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
    given: Mapping[Any, Any],
    default: Codec,
) -> Iterator[CompiledRoute]:
    """Compile the routes of all groups, in the order of registration."""
    for prefix, group, chain in groups:
        errors = tuple(tuple(each._errors) for each in chain)
        for route in group._routes:
            fed = _fed_by(route, prefix, group, producers, placed)
            yield compile_route(route, prefix, errors, fed, given, default)


def compile_route(
    route: Route,
    prefix: str,
    errors: tuple[tuple[ErrorHook, ...], ...],
    outlets: tuple[CompiledPublication, ...],
    given: Mapping[Any, Any],
    default: Codec,
) -> CompiledRoute:
    """Compile one route.

    Args:
        route: The recorded route.
        prefix: The whole prefix of its group.
        errors: The error hooks of each of its groups, starting with the innermost group.
        outlets: The publications that the handler's results are published to.
        given: For each type that is filled by annotation, the object or `Needed`.
        default: The app's codec.

    Raises:
        SignatureError: The function cannot be called with messages of the route.
        SchemaError: The codec does not support the type of the body.
        PatternError: A pattern with the prefix is invalid.
    """
    patterns = tuple(_at(route.where, partial(joined, prefix, pattern)) for pattern in route.patterns)
    call = plan(
        route.function,
        captures=patterns[0].captures,
        given=given,
        namespace=route.namespace,
        where=route.where,
        handler=True,
    )
    call, lists = plan_lists(call, route, outlets)
    if call.schema is not NO_BODY:
        _check_schema(call, route, default)
    if is_generator_function(route.function) and not outlets:
        raise SignatureError(
            f"{name_of(route.function)} is a generator, but no publisher takes its values: put a publisher above it, "
            "or remove the yield",
            where=route.where,
        )
    hooks = tuple(filter(None, errors))
    name = name_of(route.function)
    return CompiledRoute(name, route, patterns, call, lists, outlets, hooks)


def _check_schema(call: Call, route: Route, default: Codec) -> None:
    try:
        body_decoder(call.schema, stated=None, route=route.options.codec, default=default)
    except SchemaError as error:
        raise SchemaError(
            f"parameter {call.body!r} of {name_of(route.function)}: {error}", schema=call.schema, where=route.where
        ) from error


R = TypeVar("R")


def _at(where: str, make: Callable[[], R]) -> R:
    """Call ``make``; an error without a line gets the user's line ``where``."""
    try:
        return make()
    except SetupError as error:
        if error.where is None:
            error.where = where
            error.args = (f"{where}: {error}",)
        raise


def _named(routes: Sequence[CompiledRoute]) -> list[CompiledRoute]:
    """Make the names of the routes unique, for counters and logs.

    The second route of the same function name gets the suffix ``#2``, and so on.
    """
    count: dict[str, int] = {}
    named = []
    for route in routes:
        number = count[route.name] = count.get(route.name, 0) + 1
        named.append(route if number == 1 else attrs.evolve(route, name=f"{route.name}#{number}"))
    return named


def refuse_duplicates(routes: Sequence[CompiledRoute], dispatch: Dispatch) -> None:
    """Raise DuplicateRouteError if two routes are ambiguous.

    With ``dispatch="most_specific"`` these are any two routes with patterns of one shape, because only one can be
    called. Otherwise they are two routes of one function with patterns of one shape, because a message calls a function
    at most once.
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
                    f"{route.name} subscribes to {pattern.text!r} twice: remove one of the two (the other is at "
                    f"{other.route.where})"
                    if same
                    else f"{pattern.text!r} of {route.name} and the pattern of {other.name} at {other.route.where}"
                    " match the same topics, but dispatch='most_specific' calls only one: make one more specific",
                    where=route.route.where,
                )


# -- publications ----------------------------------------------------------------------------------------


def _outlet(publication: Publication[Any], prefix: str, schema: Any, default: Codec) -> CompiledPublication:
    pattern = _at(publication.where, partial(joined, prefix, publication.pattern))
    if not pattern.is_template:
        raise PatternError(
            f"publisher({publication.pattern.text!r}) can't publish behind the prefix {prefix!r}, which has a "
            "wildcard: write a capture such as {name} in place of each wildcard",
            pattern=pattern.text,
            where=publication.where,
        )
    try:
        encode, write, number = bind_encoder(schema, publication.codec, default)
    except SchemaError as error:
        raise SchemaError(
            f"publisher {publication.pattern.text!r}: {error}", schema=schema, where=publication.where
        ) from error
    return CompiledPublication(publication, pattern, encode, write, number, schema)


def _schema(publication: Publication[Any], producers: Sequence[Producer]) -> Any:
    """Return the declared type of a publication's messages, or None.

    Without a schema of its own, it is the type that the return annotation of its only function declares.
    """
    if publication.schema is not None:
        return publication.schema
    # Several functions may return different types, so the annotation of one alone does not count.
    functions = [producer for producer in producers if producer.publication is publication]
    if len(functions) != 1:
        return None
    return message_type(_returned(functions[0]))


def _returned(producer: Producer) -> Any:
    """Return the return annotation; None without one."""
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
                    f"{name_of(group[0].function)} has both a subscription and every=, but a timer calls it without "
                    "a message: write two functions",
                    where=group[0].where,
                )
            continue
        triggers.append(_trigger(group, schedule, outlets, given))
    return triggers


def _schedule(group: Sequence[Producer]) -> Schedule | None:
    schedules = {producer.schedule for producer in group if producer.schedule is not None}
    if len(schedules) > 1:
        raise SignatureError(
            f"{name_of(group[0].function)} has two periods: publish to both at one period, or write two functions",
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
            f"nothing calls {name}: give its publisher every=1.0, make it a generator, or also subscribe it",
            where=first.where,
        )
    call = plan(first.function, captures=(), given=given, namespace=first.namespace, where=first.where)
    wanted = call.body or call.envelope or next(iter(call.constants.topic), None)
    if wanted:
        raise SignatureError(
            f"{name} is called without a message, so nothing fills its parameter {wanted!r}: "
            "remove it, subscribe the function to a pattern, or write an @app.resource that yields its type",
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
                    f"publisher({publication.pattern.text!r}, every=…) has no function to call: put it above "
                    "a function",
                    parameter="every",
                    where=publication.where,
                )


def _refuse_what_cannot_be_published(
    producers: Sequence[Producer],
    routes: Sequence[CompiledRoute],
    triggers: Sequence[CompiledTrigger],
    default: Codec,
) -> None:
    """Raise an error if a publisher cannot publish the results of its function.

    Publishers with a user-defined codec are not checked, because such a codec may accept any type.
    """
    hints = {}
    for producer in producers:
        # The wrapper may change the results, so the copied annotation of the inner function is not used.
        hint = None if has_copied_return(producer.function) else _returned(producer)
        hints[identity(producer.function)] = hint
        if producer.publication is not None and _is_strict(producer.publication, default):
            _refuse_misfit(producer, producer.publication, hint)
    for call, outlets, patterns in (
        *((route.call, route.outlets, route.patterns) for route in routes),
        *((trigger.call, trigger.outlets, ()) for trigger in triggers),
    ):
        for outlet in outlets:
            if _is_strict(outlet.publication, default):
                _refuse_unfilled(call.function, hints[identity(call.function)], outlet, patterns)


def _is_strict(publication: Publication[Any], default: Codec) -> bool:
    return (publication.codec or default) in BUILTIN.values()


def _refuse_misfit(producer: Producer, publication: Publication[Any], hint: Any) -> None:
    found = misfit(hint, publication.schema) if publication.schema is not None else None
    if found is not None:
        schema, pattern = describe(publication.schema), publication.pattern.text
        verb = "yields" if is_generator_function(producer.function) else "returns"
        raise SignatureError(
            f"{name_of(producer.function)} {verb} {describe(found)}, but publisher({pattern!r}, {schema}) publishes "
            f"{schema}: change the annotation or the schema; return None to publish nothing",
            where=publication.where,
        )


def _refuse_unfilled(
    function: Callable[..., Any], hint: Any, outlet: CompiledPublication, patterns: Sequence[Pattern]
) -> None:
    """Raise PatternError if no message fills a capture of the publisher.

    The received message fills captures by its topic, the published message by its fields.
    """
    kinds = [kind for kind in (message_type(hint), outlet.schema) if kind is not None]
    captured = patterns[0].captures if patterns else ()
    for name in outlet.pattern.captures:
        if name not in captured and kinds and all(lacks(kind, name) for kind in kinds):
            came = f"{patterns[0].text!r} does not capture it" if patterns else "no message calls it"
            raise PatternError(
                f"{name_of(function)} publishes to {outlet.pattern.text!r}, but nothing fills {{{name}}}: {came}, and "
                f"{describe(kinds[0])} has no {name!r}; add such a field to the type, capture {{{name}}} in a "
                f"subscription, or call publish(…, {name}=…) in the function",
                pattern=outlet.pattern.text,
                where=outlet.publication.where,
            )


# -- codecs ----------------------------------------------------------------------------------------------


def _codecs(root: Routes, default: Codec) -> Codecs:
    """Return all codecs that the app uses or that a peer may use."""
    named: list[tuple[Codec, str | None]] = [(default, None)]
    for _, group, _ in root._walk():
        named += [(route.options.codec, route.where) for route in group._routes if route.options.codec]
        named += [(publication.codec, publication.where) for publication in group._publications if publication.codec]
    return known_codecs(Codecs(default, {codec.number: codec for codec in BUILTIN.values()}), named)


def known_codecs(known: Codecs, named: Sequence[tuple[Codec, str | None]]) -> Codecs:
    """Return ``known`` with the ``named`` codecs added.

    ``named`` has each codec with the user's line that names it.

    Raises:
        SchemaError: Two codecs have the same number.
    """
    by_number = dict(known.by_number)
    for codec, where in named:
        other = by_number.setdefault(codec.number, codec)
        if (type(other), other.name) != (type(codec), codec.name):  # two objects of one class are one codec
            raise SchemaError(
                f"codecs {other.name!r} and {codec.name!r} have the same number {codec.number} on the wire: "
                "give one of them another number, from 128 to 255",
                schema=codec,
                where=where,
            )
    return Codecs(known.default, by_number)
