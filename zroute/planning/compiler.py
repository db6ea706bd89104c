"""From what decorators recorded to what runs: one pass over all groups, before anything is opened.

Everything that can be wrong with an app is found here, with the user's line: signatures, schemas,
duplicates, publishers that nothing triggers.
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
"""A group with its whole prefix, and the groups that hold it, the innermost first."""


def compile_routes(
    root: Routes, *, given: Mapping[Any, Any], default: Codec, dispatch: Dispatch, hooks: Hooks
) -> Parts:
    """Resolve, check and bind everything in ``root`` and the groups it includes.

    ``given`` maps types to the object that a parameter of that type gets; ``hooks`` are the app's own. Raises
    SignatureError, SchemaError, DuplicateRouteError, PatternError (a joined pattern that is too long, a capture
    that nothing fills).
    """
    groups = list(root._walk())
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
    """The hooks of all groups and of the app, each with the names of the arguments that it is called with."""
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
    """Each group once, though it may be included under several prefixes: its timers run once."""
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
    """Those of all groups, in the order of registration."""
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
    """One route behind ``prefix``, with the ``errors`` hooks of its groups (the innermost first)."""
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
            f"{name_of(route.function)} is a generator, and nothing takes what it yields: put a publisher above it, "
            "or leave the yield out",
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
    """Give an error raised while compiling the user's line."""
    try:
        return make()
    except SetupError as error:
        if error.where is None:
            error.where = where
            error.args = (f"{where}: {error}",)
        raise


def _named(routes: Sequence[CompiledRoute]) -> list[CompiledRoute]:
    """Names for counters and logs: the function's, with a number where two have the same."""
    count: dict[str, int] = {}
    named = []
    for route in routes:
        number = count[route.name] = count.get(route.name, 0) + 1
        named.append(route if number == 1 else attrs.evolve(route, name=f"{route.name}#{number}"))
    return named


def refuse_duplicates(routes: Sequence[CompiledRoute], dispatch: Dispatch) -> None:
    """Raise DuplicateRouteError for two routes of which nobody could say which is called."""
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
                    f"{route.name} takes {pattern.text!r} twice: leave one of the two out (the other is at "
                    f"{other.route.where})"
                    if same
                    else f"{pattern.text!r} of {route.name} and that of {other.name} at {other.route.where}"
                    " match the same topics, and dispatch='most_specific' calls one: make one more specific",
                    where=route.route.where,
                )


# -- publications ----------------------------------------------------------------------------------------


def _outlet(publication: Publication[Any], prefix: str, schema: Any, default: Codec) -> CompiledPublication:
    pattern = _at(publication.where, partial(joined, prefix, publication.pattern))
    if not pattern.is_template:
        raise PatternError(
            f"publisher({publication.pattern.text!r}) behind the prefix {prefix!r} has no one topic to publish to: "
            "write a capture such as {name} in place of each wildcard of the prefix",
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
    """The declared type of a publication's messages: its own, or what its one function says it returns."""
    if publication.schema is not None:
        return publication.schema
    functions = [producer for producer in producers if producer.publication is publication]
    if len(functions) != 1:
        return None
    return message_type(_returned(functions[0]))


def _returned(producer: Producer) -> Any:
    """The return annotation; None without one."""
    return hints_of(producer.function, producer.namespace, producer.where).get("return")


def _fed_by(
    route: Route,
    prefix: str,
    group: Routes,
    producers: Sequence[Producer],
    placed: Sequence[tuple[str, CompiledPublication]],
) -> tuple[CompiledPublication, ...]:
    """The outlets that what this handler returns is published to.

    A group that is included under several prefixes answers under the prefix it was asked under.
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
                    f"{name_of(group[0].function)} has both a subscription and every=: a message would call it, "
                    "and a timer without one; write two functions",
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
            f"nothing calls {name}: give its publisher every=1.0, make it a generator, or subscribe it too",
            where=first.where,
        )
    call = plan(first.function, captures=(), given=given, namespace=first.namespace, where=first.where)
    wanted = call.body or call.envelope or next(iter(call.constants.topic), None)
    if wanted:
        raise SignatureError(
            f"{name} is called without a message, so there is nothing for its parameter {wanted!r}: "
            "take it out, subscribe the function to a pattern, or let an @app.resource yield its type",
            parameter=wanted,
            where=first.where,
        )
    publications = [producer.publication for producer in group]
    fed = tuple(outlet for outlet in outlets if outlet.publication in publications)
    return CompiledTrigger(name, first.where, call, fed, schedule)


def _refuse_idle_publishers(groups: Sequence[Group], producers: Sequence[Producer]) -> None:
    used = {id(producer.publication) for producer in producers}
    for _, group, _ in groups:
        for publication in group._publications:
            if publication.schedule is not None and id(publication) not in used:
                raise SignatureError(
                    f"publisher({publication.pattern.text!r}, every=…) has no function to call: put it above one",
                    parameter="every",
                    where=publication.where,
                )


def _refuse_what_cannot_be_published(
    producers: Sequence[Producer],
    routes: Sequence[CompiledRoute],
    triggers: Sequence[CompiledTrigger],
    default: Codec,
) -> None:
    """Raise an error for a publisher above a function whose results it can't take.

    A codec of the user's own may take what it likes: its publishers are left alone.
    """
    hints = {}
    for producer in producers:
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
            f"{name_of(producer.function)} {verb} {describe(found)}, and publisher({pattern!r}, {schema}) publishes "
            f"{schema}: change the annotation or the schema; return None to publish nothing",
            where=publication.where,
        )


def _refuse_unfilled(
    function: Callable[..., Any], hint: Any, outlet: CompiledPublication, patterns: Sequence[Pattern]
) -> None:
    """Raise PatternError for a capture that neither the message that came in nor the one that goes out has."""
    kinds = [kind for kind in (message_type(hint), outlet.schema) if kind is not None]
    captured = patterns[0].captures if patterns else ()
    for name in outlet.pattern.captures:
        if name not in captured and kinds and all(lacks(kind, name) for kind in kinds):
            came = f"{patterns[0].text!r} does not capture it" if patterns else "no message calls it"
            raise PatternError(
                f"{name_of(function)} publishes to {outlet.pattern.text!r}, and nothing fills {{{name}}}: {came}, and "
                f"{describe(kinds[0])} has no {name!r}; give the type such a field, capture {{{name}}} in a "
                f"subscription, or call publish(…, {name}=…) in the function",
                pattern=outlet.pattern.text,
                where=outlet.publication.where,
            )


# -- codecs ----------------------------------------------------------------------------------------------


def _codecs(root: Routes, default: Codec) -> Codecs:
    """All codecs the app names."""
    named: list[tuple[Codec, str | None]] = [(default, None)]
    for _, group, _ in root._walk():
        named += [(route.options.codec, route.where) for route in group._routes if route.options.codec]
        named += [(publication.codec, publication.where) for publication in group._publications if publication.codec]
    return known_codecs(Codecs(default, {codec.number: codec for codec in BUILTIN.values()}), named)


def known_codecs(known: Codecs, named: Sequence[tuple[Codec, str | None]]) -> Codecs:
    """``known`` with those ``named`` at a line added. Raises SchemaError where two have one number."""
    by_number = dict(known.by_number)
    for codec, where in named:
        other = by_number.setdefault(codec.number, codec)
        if (type(other), other.name) != (type(codec), codec.name):  # two objects of one class are one codec
            raise SchemaError(
                f"codecs {other.name!r} and {codec.name!r} have the same number {codec.number} on the wire: "
                "give one of them another, from 128 to 255",
                schema=codec,
                where=where,
            )
    return Codecs(known.default, by_number)
