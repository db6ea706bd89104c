"""Analysis of function signatures: which argument each parameter receives.

Parameters are filled by name (captures) or by type (`Envelope`, `Topic`, the app, resources). The remaining parameter
receives the message body. This analysis runs when the app is compiled. Arguments that are the same for all messages of
a topic are bound in advance, so a message costs only the call itself.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, MutableSequence, Sequence
from functools import partial
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import attrs

from zroute.declarations.captures import Converter, converter_of
from zroute.declarations.providers import Needed, asked, find_marker, may_be_body, provided
from zroute.declarations.wrappers import forwarded
from zroute.errors import SchemaError, SignatureError
from zroute.functions import annotated, name_of
from zroute.messages.schema import MAPS, describe, refuse_name, resolved
from zroute.messages.topics import Topic
from zroute.messages.wire import Envelope

__all__ = [
    "NO_BODY",
    "Call",
    "has_copied_return",
    "hints_of",
    "needs_of",
    "plan",
    "unfilled",
]

NO_BODY: Any = inspect.Parameter.empty
"""The schema of a function without a body parameter. The body is then not decoded."""

# The kinds of *args and **kwargs. They receive all other arguments, so no argument is planned for them.
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_UNTYPED = (
    Any,
    object,
    bool,
    int,
    float,
    str,
    bytes,
    memoryview,
    types.NoneType,
    list,
    dict,
    Sequence,
    MutableSequence,
    *MAPS,
    typing.Union,
    types.UnionType,
)
"""The types of the values that a body contains when it is decoded without a declared type."""


@attrs.frozen
class Constants:
    """The arguments that are the same for all messages of one topic.

    Attributes:
        converters: For each parameter that is a capture, the converter of its segment.
        topic: The names of the parameters that receive the topic.
        given: For each parameter that is filled by type, its object, or `Needed` for a resource.
    """

    converters: Mapping[str, Converter]
    topic: tuple[str, ...]
    given: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.converters or self.topic or self.given)

    def of(self, captured: Mapping[str, Any], topic: bytes) -> dict[str, Any]:
        """Return the arguments by name for messages of ``topic``.

        ``captured`` is the result of `Call.convert`.
        """
        constants = {**captured, **self.given}
        if self.topic:  # most functions do not take the topic, so it is not decoded for them
            constants |= dict.fromkeys(self.topic, Topic.from_wire(topic))
        return constants


@attrs.frozen
class Call:
    """The plan for calls of one function.

    Attributes:
        function: The user's function.
        schema: The declared type of the body, or `NO_BODY`.
        body: The name of the parameter that receives the body, or None.
        envelope: The name of the parameter that receives the `Envelope`, or None.
        constants: The arguments that are the same for all messages of one topic.
        by_name: True if body and envelope are passed by name; False if the body is passed by position.
        order: The names of all parameters that can be passed by position.
    """

    function: Callable[..., Any]
    schema: Any
    body: str | None
    envelope: str | None
    constants: Constants
    by_name: bool
    order: tuple[str, ...]

    def convert(self, captures: Mapping[str, bytes]) -> dict[str, Any] | None:
        """Return the captured segments as arguments by name.

        Return None if a segment can't be converted. The route then does not match the topic.
        """
        try:
            return {name: convert(captures[name]) for name, convert in self.constants.converters.items()}
        except ValueError:
            return None

    def unconverted(self, captures: Mapping[str, bytes]) -> str | None:
        """Return the name of the first captured segment that can't be converted, or None."""
        for name, convert in self.constants.converters.items():
            try:
                convert(captures[name])
            except ValueError:
                return name
        return None

    @property
    def needs(self) -> tuple[Any, ...]:
        """The types of the resources that the function needs."""
        return tuple(value.kind for value in self.constants.given.values() if isinstance(value, Needed))

    def supply(self, resources: Mapping[Any, Any]) -> Call:
        """Return the plan with the objects of the open resources."""
        if not self.needs:
            return self
        given = {
            name: resources[value.kind] if isinstance(value, Needed) else value
            for name, value in self.constants.given.items()
        }
        return attrs.evolve(self, constants=attrs.evolve(self.constants, given=given))

    def bind(self, captured: Mapping[str, Any], topic: bytes) -> Callable[..., Any]:
        """Return the function with its constant arguments for ``topic`` bound.

        Constant arguments are the same for all messages of the topic. The caller passes the body by position or, if
        ``by_name`` is True, the body and the envelope by name. A `functools.partial` adds no Python frame to the call.
        A partial is fastest when it binds leading parameters by position, so these are bound by position.
        """
        if not self.constants:
            return self.function
        constants = self.constants.of(captured, topic)
        before = [constants.pop(name) for name in self.leading(constants)]
        return partial(self.function, *before, **constants)

    def leading(self, constants: Collection[str]) -> list[str]:
        """Return the names of ``constants`` to pass by position, before the body."""
        return [] if self.by_name else list(takewhile(constants.__contains__, self.order))


def plan(
    function: Callable[..., Any],
    *,
    captures: tuple[str, ...],
    given: Mapping[Any, Any],
    namespace: Mapping[str, Any] | None = None,
    where: str,
    handler: bool = False,
    own_codec: bool = False,
    decorator: str = "subscribe",
) -> Call:
    """Return the plan for calls of ``function``, with the source of each argument.

    A parameter with the name of a capture receives the captured segment. A parameter annotated with `Envelope`, `Topic`
    or a type in ``given`` receives the object of that type; see `zroute.declarations.providers`. The remaining
    parameter without a default receives the body.

    If a ``handler`` has no such parameter and no `Envelope`, the body is passed to a leading ``*args``, as in
    ``print``. Without ``*args``, the only remaining parameter with a default receives the body.

    Args:
        function: The function to call.
        captures: The names of the captures in the patterns of the function.
        given: The object, or `Needed`, for each type that is filled by annotation.
        namespace: The local names at the registration, for annotations in nested functions.
        where: The user's line, as ``file:line``, for errors.
        handler: True if the function is called with messages.
        own_codec: True if a user's own codec decodes the bodies.
        decorator: The decorator of the function, for errors.

    Raises:
        SignatureError: A parameter cannot be filled, or two parameters need the same argument.
    """
    parameters = _parameters(function, where)
    hints = hints_of(function, namespace, where)
    _refuse_unbound_self(function, parameters, where, decorator)
    fill = partial(provided, given=given, own_codec=own_codec, where=where)
    constants, left = _constants({name: hints.get(name, Any) for name in parameters}, captures, fill, where)
    _refuse_markers(function, left, parameters, hints, where)
    envelopes = [name for name in left if asked(hints.get(name)) is Envelope]
    others = [name for name in left if name not in envelopes]
    bodies = _bodies(others, parameters)
    if len(bodies) > 1 and not own_codec:
        _refuse_unprovided(function, {name: hints.get(name, Any) for name in bodies}, given, where)
    _refuse_two(bodies, "body", captures, where)
    _refuse_two(envelopes, "envelope", captures, where)
    envelope = envelopes[0] if envelopes else None
    body = bodies[0] if bodies else None
    if handler and not body and not envelope:  # an Envelope contains the body
        body = _rest_of(function) or _only(others, function, where)
    by_name = envelope is not None or (body in parameters and parameters[body].kind is inspect.Parameter.KEYWORD_ONLY)
    _refuse_positional_only(parameters, None if by_name else body, where)
    schema = _declared(hints.get(body, Any)) if body else NO_BODY
    order = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    call = Call(function, schema, body, envelope, constants, by_name, tuple(order))
    # The function behind a wrapper is planned too. If the plans differ, the wrapper would pass wrong arguments.
    again = partial(
        plan,
        captures=captures,
        given=given,
        namespace=namespace,
        where=where,
        handler=handler,
        own_codec=own_codec,
    )
    _refuse_hidden(call, again, namespace, where)
    return call


def unfilled(
    function: Callable[..., Any], *, given: Mapping[Any, Any], namespace: Mapping[str, Any] | None, where: str
) -> list[str]:
    """Return the parameters of a middleware that would receive the message.

    At most one parameter can receive the message. Arguments and errors are the same as for `plan`.
    """
    parameters = _parameters(function, where)
    hints = hints_of(function, namespace, where)
    fill = partial(provided, given=given, own_codec=True, where=where)
    _, left = _constants({name: hints.get(name, Any) for name in parameters}, (), fill, where)
    return _bodies([name for name in left if asked(hints.get(name)) is not Envelope], parameters)


def _bodies(names: Iterable[str], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [name for name in names if parameters[name].default is inspect.Parameter.empty]


def _constants(
    hints: Mapping[str, Any], captures: tuple[str, ...], fill: Callable[[str, Any], Any], where: str
) -> tuple[Constants, list[str]]:
    """Return the constant arguments, and the names of the other parameters.

    Constant arguments are the same for all messages of a topic.
    """
    converters: dict[str, Converter] = {}
    topics: list[str] = []
    objects: dict[str, Any] = {}
    left: list[str] = []
    for name, hint in hints.items():
        if name in captures:
            converters[name] = converter_of(hint, name, where)
        elif asked(hint) is Topic:
            topics.append(name)
        elif (found := fill(name, hint)) is not None:
            objects[name] = found
        else:
            left.append(name)
            continue
        try:
            refuse_name(hint)
        except SchemaError as error:
            raise SchemaError(f"parameter {name!r}: {error}", schema=hint, where=where) from error
    return Constants(converters, tuple(topics), objects), left


def needs_of(
    function: Callable[..., Any],
    given: Mapping[Any, Any],
    arguments: tuple[str, ...],
    *,
    named: Mapping[str, Any] = MappingProxyType({}),
    namespace: Mapping[str, Any] | None,
    where: str,
) -> dict[str, Any]:
    """Return the arguments of a hook that are filled by type or by name.

    Args:
        function: The hook.
        given: The object, or `Needed`, for each type that is filled by annotation.
        arguments: The names of the arguments that the hook receives by position.
        named: The object, or `Needed`, for each further parameter that is filled by its name.
        namespace: The local names at the registration, for annotations in nested functions.
        where: The user's line, as ``file:line``, for errors.

    Raises:
        SignatureError: The hook cannot be called with these arguments.
    """
    hints = hints_of(function, namespace, where)
    parameters = _parameters(function, where)
    found = {
        name: provided(name, hints[name], given, own_codec=False, where=where) for name in parameters if name in hints
    }
    needs = {name: value for name, value in found.items() if value is not None}
    _refuse_markers(function, [name for name in parameters if name not in needs], parameters, hints, where)
    signature = inspect.signature(function)
    try:
        # A parameter that receives an argument by position is not filled by its name again.
        taken = signature.bind_partial(*arguments).arguments
        needs |= {name: named[name] for name in parameters if name in named and name not in (*taken, *needs)}
        signature.bind(*arguments, **needs)
    except TypeError as error:
        called = f"with {', '.join(arguments)}" if arguments else "without arguments"
        by_name = f"; or name it {' or '.join(named)}" if named else ""
        raise SignatureError(
            f"{name_of(function)} can't be called {called}: {error}; annotate each further parameter as App or with "
            f"the type of a resource{by_name}",
            where=where,
        ) from error
    for hidden in forwarded(function):
        if needs_of(hidden, given, arguments, named=named, namespace=namespace, where=where):
            raise _hides(function, hidden, where)
    return needs


def hints_of(function: Callable[..., Any], namespace: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Return the annotations of ``function``, with strings evaluated to types.

    Raises:
        SignatureError: An annotation uses a name that does not exist, or an annotation is not a type.
    """
    target = annotated(function)
    try:
        return typing.get_type_hints(target, localns=_names(target, namespace), include_extras=True)
    except NameError as error:
        raise SignatureError(
            f"the annotation {error.name!r} of {name_of(function)} can't be resolved at run time: import {error.name} "
            "above the function, outside of TYPE_CHECKING",
            where=where,
        ) from error
    except Exception as error:  # evaluating an annotation runs the user's expression, which may raise any error
        raise SignatureError(
            f"{name_of(function)} has an annotation that is not a type: {error}", where=where
        ) from error


def has_copied_return(function: Callable[..., Any]) -> bool:
    """Return True if ``functools.wraps`` copied the return annotation.

    A wrapper may return another type than the wrapped function, so a copied annotation is not reliable.
    """
    target = annotated(function)
    inner = getattr(target, "__wrapped__", None)
    return inner is not None and _return_of(target) == _return_of(inner)


def _return_of(function: Any) -> Any:
    return (getattr(function, "__annotations__", None) or {}).get("return")


# -- reading -------------------------------------------------------------------------------------------


def _parameters(function: Callable[..., Any], where: str) -> dict[str, inspect.Parameter]:
    if not callable(function):
        raise SignatureError(f"{function!r} is not a function: decorate or pass a function", where=where)
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"Python can't read the signature of {name_of(function)}: register a function of your "
            f"own that calls {name_of(function)}",
            where=where,
        ) from error
    # The signature of a partial still lists arguments that are bound by keyword, as if they had defaults.
    bound = function.keywords if isinstance(function, partial) else {}
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind not in _VARIADIC and name not in bound
    }


def _declared(hint: Any) -> Any:
    """Return the type that an annotation declares; Any for ``*args: P.args``."""
    return Any if isinstance(hint, typing.ParamSpecArgs) else hint


def _only(optional: list[str], function: Callable[..., Any], where: str) -> str | None:
    """Return the only remaining parameter with a default, or None if there is none."""
    if len(optional) > 1:
        raise SignatureError(
            f"parameters {optional[0]!r} and {optional[1]!r} of {name_of(function)} both have a default, so either "
            "could receive the body: remove the default of the parameter that receives the body; or bind the other "
            "parameter with functools.partial",
            parameter=optional[1],
            where=where,
        )
    return optional[0] if optional else None


def _rest_of(function: Callable[..., Any]) -> str | None:
    """Return the name of ``*args`` if it is the first parameter, else None."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first.name if first and first.kind is inspect.Parameter.VAR_POSITIONAL else None


def _names(function: Any, namespace: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the names that annotations of nested functions can use.

    These are the module's globals and ``namespace``, the local names at the registration, which take precedence.
    """
    if namespace is None:
        return None
    module = sys.modules.get(getattr(function, "__module__", ""))
    return {**vars(module), **namespace} if module else dict(namespace)


def _refuse_unbound_self(
    function: Any, parameters: Mapping[str, inspect.Parameter], where: str, decorator: str
) -> None:
    first = next(iter(parameters.values()), None)
    parent = getattr(function, "__qualname__", "").rpartition(".")[0]
    is_method = isinstance(function, types.FunctionType) and parent and not parent.endswith("<locals>")
    if is_method and first and first.name in ("self", "cls") and first.annotation is inspect.Parameter.empty:
        raise SignatureError(
            f"{name_of(function)} is a method without an instance: register the method of an instance, as in "
            f"app.{decorator}(pattern)(instance.{function.__name__})",
            parameter=first.name,
            where=where,
        )


def _refuse_hidden(call: Call, plan: Callable[..., Call], namespace: Mapping[str, Any] | None, where: str) -> None:
    """Raise SignatureError if a wrapper hides parameters that zroute must fill."""
    for hidden in forwarded(call.function):
        try:
            hints_of(hidden, namespace, where)
            named = _parameters(hidden, where)
        except SignatureError:  # the inner function cannot be analysed, so it is not checked
            continue
        try:
            same = _same_call(plan(hidden), call)
        except SignatureError:
            if not named:  # also a wrapper; the error describes the function behind it
                raise
            same = False
        if not same:
            raise _hides(call.function, hidden, where)


def _same_call(inner: Call, outer: Call) -> bool:
    """Return True if a call planned as ``outer`` passes the arguments of ``inner``."""
    if inner.constants or inner.by_name or (inner.body is None) != (outer.body is None):
        return False
    return inner.schema == outer.schema or _comes_as_it_is(inner.schema)


def _comes_as_it_is(hint: Any) -> bool:
    """Return True if decoding without a declared type yields values of type ``hint``.

    The decoder creates classes, datetimes and similar types only if they are declared.
    """
    hint = resolved(hint)
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and not typing.is_typeddict(kind) and kind not in _UNTYPED:
        return False
    return all(map(_comes_as_it_is, typing.get_args(hint)))


def _hides(function: Callable[..., Any], hidden: Callable[..., Any], where: str) -> SignatureError:
    while isinstance(function, partial):
        function = function.func
    wrapper = getattr(function, "__qualname__", None) or type(function).__qualname__
    names = ", ".join(inspect.signature(hidden).parameters)
    return SignatureError(
        f"{wrapper}() hides the parameters of {name_of(hidden)[:-1]}{names}) behind *args, so zroute can't "
        "fill these parameters by name and type: put @functools.wraps(function) above the wrapper (in a class, call "
        "functools.update_wrapper(self, function))",
        where=where,
    )


def _refuse_markers(
    function: Callable[..., Any],
    names: Iterable[str],
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
    where: str,
) -> None:
    """Raise SignatureError for a marker of another framework, such as ``Depends(f)``.

    ``names`` contains the parameters that have no source yet.
    """
    for name in names:
        found = find_marker(name, hints.get(name), parameters[name].default)
        if found is not None:
            marker, remedy = found
            raise SignatureError(
                f"parameter {name!r} of {name_of(function)} uses {marker}(…), a marker of another framework that "
                f"zroute does not support: {remedy}",
                parameter=name,
                where=where,
            )


def _refuse_unprovided(
    function: Callable[..., Any], hints: Mapping[str, Any], given: Mapping[Any, Any], where: str
) -> None:
    """Raise SignatureError if no message and no resource can have a parameter's type."""
    yielded = [describe(value.kind) for value in given.values() if isinstance(value, Needed)]
    for name, hint in hints.items():
        if not may_be_body(asked(hint)):
            wanted = describe(asked(hint))
            raise SignatureError(
                f"parameter {name!r} of {name_of(function)} is annotated with {wanted}, but no message can have this "
                f"type, and no resource yields {wanted} (the app's resources: {', '.join(yielded) or 'none'}): write "
                f"an @app.resource that yields {wanted}; or write a capture {{{name}}} in the pattern; or give the "
                "parameter a default",
                parameter=name,
                where=where,
            )


def _refuse_two(names: list[str], what: str, captures: tuple[str, ...], where: str) -> None:
    if len(names) > 1:
        captured = f"captures {', '.join(map(repr, captures))}" if captures else "captures nothing"
        raise SignatureError(
            f"parameters {names[0]!r} and {names[1]!r} would both receive the {what}, but only one parameter can (the "
            f"pattern {captured}): write a capture in the pattern, as in 'news.{{{names[1]}}}'; or annotate one "
            "parameter as Envelope, Topic or App; or write an @app.resource that yields its type; or give one a "
            "default",
            parameter=names[1],
            where=where,
        )


def _refuse_positional_only(parameters: Mapping[str, inspect.Parameter], by_position: str | None, where: str) -> None:
    """Raise SignatureError for a positional-only parameter, except a leading body.

    All other arguments are passed by name.
    """
    for index, (name, parameter) in enumerate(parameters.items()):
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and (index or name != by_position):
            raise SignatureError(
                f"parameter {name!r} is positional-only, but zroute passes this argument by name: remove the '/' from "
                "the signature",
                parameter=name,
                where=where,
            )
