"""A handler's signature, read once: what each parameter is given, and how the function is called.

Everything here happens at compile time; what is left for a message is the call itself.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from functools import partial
from typing import Any

import attrs

from zroute.declarations.captures import Converter, converter_of, hashable
from zroute.declarations.wrappers import forwarded
from zroute.errors import SignatureError
from zroute.functions import annotated, name_of
from zroute.messages.schema import MAPS, resolved
from zroute.messages.topics import Topic
from zroute.messages.wire import Envelope

__all__ = [
    "NO_BODY",
    "Call",
    "Needed",
    "has_copied_return",
    "hints_of",
    "needs_of",
    "plan",
]

NO_BODY: Any = inspect.Parameter.empty
"""The schema of a function that takes no body: it is not decoded."""

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_UNTYPED = (
    Any,
    object,
    bool,
    int,
    float,
    str,
    bytes,
    types.NoneType,
    list,
    dict,
    Sequence,
    MutableSequence,
    *MAPS,
    typing.Union,
    types.UnionType,
)
"""What bodies are made of where no type is declared."""


@attrs.frozen
class Needed:
    """Stands for the object of a resource, which exists only while the app runs."""

    kind: Any


@attrs.frozen
class Constants:
    """The parameters of a function that get the same for every message of a topic.

    ``converters`` turn captured segments into arguments; ``topic`` names the parameters that get the topic, ``given``
    those that get the same object each time.
    """

    converters: Mapping[str, Converter]
    topic: tuple[str, ...]
    given: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.converters or self.topic or self.given)

    def of(self, captured: Mapping[str, Any], topic: Topic) -> dict[str, Any]:
        """Return the arguments for messages of ``topic``, by name; ``captured`` are those that `Call.convert` made."""
        return {**captured, **dict.fromkeys(self.topic, topic), **self.given}


@attrs.frozen
class Call:
    """How one function is called.

    ``schema`` is the declared type of the body, `NO_BODY` without one. ``body`` and ``envelope`` name the parameters
    that get these, and ``constants`` are those that get the same for every message of a topic. ``order`` lists the
    parameters that may be given by position.
    """

    function: Callable[..., Any]
    schema: Any
    body: str | None
    envelope: str | None
    constants: Constants
    by_name: bool
    order: tuple[str, ...]

    def convert(self, captures: Mapping[str, bytes]) -> dict[str, Any] | None:
        """The captured segments as arguments, or None where one does not convert: then the route does not match."""
        try:
            return {name: convert(captures[name]) for name, convert in self.constants.converters.items()}
        except ValueError:
            return None

    @property
    def needs(self) -> tuple[Any, ...]:
        """The types of the resources that it is given."""
        return tuple(value.kind for value in self.constants.given.values() if isinstance(value, Needed))

    def supply(self, resources: Mapping[Any, Any]) -> Call:
        """With the objects of the open resources in their places, so that a message pays nothing for them."""
        given = {
            name: resources[value.kind] if isinstance(value, Needed) else value
            for name, value in self.constants.given.items()
        }
        return attrs.evolve(self, constants=attrs.evolve(self.constants, given=given))

    def bind(self, captured: Mapping[str, Any], topic: Topic) -> Callable[..., Any]:
        """The function with all arguments set that are the same for every message of ``topic``.

        What is left is called with the body by position, or ``by_name`` with what `body` and `envelope`
        name. A `functools.partial` adds no Python frame to the call.
        """
        constants = self.constants.of(captured, topic)
        if not constants:
            return self.function
        before: list[Any] = []
        for name in self.order:
            if self.by_name or name not in constants:
                break
            before.append(constants.pop(name))
        return partial(self.function, *before, **constants)


def plan(
    function: Callable[..., Any],
    *,
    captures: tuple[str, ...],
    given: Mapping[Any, Any],
    namespace: Mapping[str, Any] | None = None,
    where: str,
    handler: bool = False,
) -> Call:
    """Work out what each parameter of ``function`` is given.

    By name a capture; by annotation `Envelope`, `Topic` or a type in ``given``; the one that is left is the
    body. Of a ``handler``, which is called with messages, and takes no `Envelope`, the body is also what ``*args`` gets
    where nothing is named before it, as in ``print``, and else the one parameter left that has a default.
    ``namespace`` holds the local names at the place of registration, for annotations of functions that are
    defined inside others. Raises SignatureError, naming ``where`` and the parameter.
    """
    parameters = _parameters(function, where)
    hints = hints_of(function, namespace, where)
    _refuse_unbound_self(function, parameters, where)
    constants, left = _constants({name: hints.get(name, Any) for name in parameters}, captures, given, where)
    envelopes = [name for name in left if hints.get(name) is Envelope]
    others = [name for name in left if name not in envelopes]
    bodies = [name for name in others if parameters[name].default is inspect.Parameter.empty]
    _refuse_two(bodies, "body", captures, where)
    _refuse_two(envelopes, "envelope", captures, where)
    envelope = envelopes[0] if envelopes else None
    body = bodies[0] if bodies else None
    if handler and not body and not envelope:  # an Envelope has the body in it
        body = _rest_of(function) or _only(others, function, where)
    by_name = envelope is not None or (body in parameters and parameters[body].kind is inspect.Parameter.KEYWORD_ONLY)
    _refuse_positional_only(parameters, None if by_name else body, where)
    schema = _declared(hints.get(body, Any)) if body else NO_BODY
    order = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    call = Call(function, schema, body, envelope, constants, by_name, tuple(order))
    again = partial(plan, captures=captures, given=given, namespace=namespace, where=where, handler=handler)
    _refuse_hidden(call, again, namespace, where)
    return call


def _constants(
    hints: Mapping[str, Any], captures: tuple[str, ...], given: Mapping[Any, Any], where: str
) -> tuple[Constants, list[str]]:
    """The parameters that get the same for every message of a topic, and the names of all others."""
    converters: dict[str, Converter] = {}
    topics: list[str] = []
    objects: dict[str, Any] = {}
    left: list[str] = []
    for name, hint in hints.items():
        if name in captures:
            converters[name] = converter_of(hint, name, where)
        elif hint is Topic:
            topics.append(name)
        elif hint is not Envelope and hashable(hint) and hint in given:
            objects[name] = given[hint]
        else:
            left.append(name)
    return Constants(converters, tuple(topics), objects), left


def needs_of(
    function: Callable[..., Any],
    given: Mapping[Any, Any],
    arguments: tuple[str, ...],
    *,
    namespace: Mapping[str, Any] | None,
    where: str,
) -> dict[str, Any]:
    """What a hook is given by name: its parameters that are annotated with a type in ``given``.

    The hook is called with ``arguments`` by position besides. Raises SignatureError where that can't be.
    """
    hints = hints_of(function, namespace, where)
    parameters = _parameters(function, where)
    needs = {name: given[hints[name]] for name in parameters if hashable(hints.get(name)) and hints.get(name) in given}
    try:
        inspect.signature(function).bind(*arguments, **needs)
    except TypeError as error:
        called = f"with {', '.join(arguments)}" if arguments else "without arguments"
        raise SignatureError(
            f"{name_of(function)} is called {called}, and can't be: {error}; besides these it may take an App and "
            "resources, by their types",
            where=where,
        ) from error
    for hidden in forwarded(function):
        if needs_of(hidden, given, arguments, namespace=namespace, where=where):
            raise _hides(function, hidden, where)
    return needs


def hints_of(function: Callable[..., Any], namespace: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """The annotations of ``function`` as types, also postponed ones. Raises SignatureError."""
    target = annotated(function)
    try:
        return typing.get_type_hints(target, localns=_names(target, namespace), include_extras=True)
    except NameError as error:
        raise SignatureError(
            f"{name_of(function)} is annotated with {error.name!r}, which does not exist when the app is compiled: "
            "import it at run time too (not only under TYPE_CHECKING), above the handler",
            where=where,
        ) from error
    except Exception as error:  # an annotation is an expression of the user's, and may raise whatever those do
        raise SignatureError(f"{name_of(function)} has an annotation that is no type: {error}", where=where) from error


def has_copied_return(function: Callable[..., Any]) -> bool:
    """Return True if the return annotation is that of the function that ``function`` wraps.

    `functools.wraps` copies it, and the wrapper may return what it likes. An annotation of the wrapper's own differs.
    """
    target = annotated(function)
    inner = getattr(target, "__wrapped__", None)
    return inner is not None and _return_of(target) == _return_of(inner)


def _return_of(function: Any) -> Any:
    return (getattr(function, "__annotations__", None) or {}).get("return")


# -- reading -------------------------------------------------------------------------------------------


def _parameters(function: Callable[..., Any], where: str) -> dict[str, inspect.Parameter]:
    if not callable(function):
        raise SignatureError(f"{function!r} is not a function: decorate or pass one", where=where)
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"{name_of(function)} has no signature Python can read: wrap it in a function of your own", where=where
        ) from error
    bound = function.keywords if isinstance(function, partial) else {}
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind not in _VARIADIC and name not in bound
    }


def _declared(hint: Any) -> Any:
    """The type that an annotation declares; ``*args: P.args`` of a typed decorator says nothing."""
    return Any if isinstance(hint, typing.ParamSpecArgs) else hint


def _only(optional: list[str], function: Callable[..., Any], where: str) -> str | None:
    """The one parameter left, which has a default."""
    if len(optional) > 1:
        raise SignatureError(
            f"parameters {optional[0]!r} and {optional[1]!r} of {name_of(function)} both have a default, and either "
            "could get the body: leave out the default of the one that gets it, and bind those that are no part of "
            "the message with functools.partial",
            parameter=optional[1],
            where=where,
        )
    return optional[0] if optional else None


def _rest_of(function: Callable[..., Any]) -> str | None:
    """The name of ``*args`` in a function that names nothing before it."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first.name if first and first.kind is inspect.Parameter.VAR_POSITIONAL else None


def _names(function: Any, namespace: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Local names for annotations of nested functions: those at the registration, then those closed over."""
    if namespace is None:
        return None
    module = sys.modules.get(getattr(function, "__module__", ""))
    return {**vars(module), **namespace} if module else dict(namespace)


def _refuse_unbound_self(function: Any, parameters: Mapping[str, inspect.Parameter], where: str) -> None:
    first = next(iter(parameters.values()), None)
    parent = getattr(function, "__qualname__", "").rpartition(".")[0]
    is_method = isinstance(function, types.FunctionType) and parent and not parent.endswith("<locals>")
    if is_method and first and first.name in ("self", "cls") and first.annotation is inspect.Parameter.empty:
        raise SignatureError(
            f"{name_of(function)} is a method without its instance: register the bound method, "
            f"app.subscribe(pattern)(instance.{function.__name__})",
            parameter=first.name,
            where=where,
        )


def _refuse_hidden(call: Call, plan: Callable[..., Call], namespace: Mapping[str, Any] | None, where: str) -> None:
    """Raise SignatureError if ``call`` reaches a function that is given something by name or type, and would not be."""
    for hidden in forwarded(call.function):
        try:
            hints_of(hidden, namespace, where)
            named = _parameters(hidden, where)
        except SignatureError:  # nothing can be told of it
            continue
        try:
            same = _same_call(plan(hidden), call)
        except SignatureError:
            if not named:  # a wrapper, too, and the error speaks of what that hides
                raise
            same = False
        if not same:
            raise _hides(call.function, hidden, where)


def _same_call(inner: Call, outer: Call) -> bool:
    """True if a function planned as ``inner`` is given the same when it is called as ``outer``."""
    if inner.constants or inner.by_name or (inner.body is None) != (outer.body is None):
        return False
    return inner.schema == outer.schema or _comes_as_it_is(inner.schema)


def _comes_as_it_is(hint: Any) -> bool:
    """False for a type that a body is made into only where the type is known, such as a class or a datetime."""
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
        f"{wrapper}() hides the parameters of {name_of(hidden)[:-1]}{names}) behind *args, so that they can't be "
        "filled by their names and types: put @functools.wraps(function) above the wrapper (a class calls "
        "functools.update_wrapper(self, function))",
        where=where,
    )


def _refuse_two(names: list[str], what: str, captures: tuple[str, ...], where: str) -> None:
    if len(names) > 1:
        captured = f"captures {', '.join(map(repr, captures))}" if captures else "captures nothing"
        raise SignatureError(
            f"parameters {names[0]!r} and {names[1]!r} would both get the {what}, and a message has one: "
            f"name a capture as in 'news.{{{names[1]}}}' (the pattern {captured}), "
            "annotate one as Envelope, Topic or App to get that, let a function under @app.resource yield its type, "
            "or give one of them a default",
            parameter=names[1],
            where=where,
        )


def _refuse_positional_only(parameters: Mapping[str, inspect.Parameter], by_position: str | None, where: str) -> None:
    """All but a leading body are given by name."""
    for index, (name, parameter) in enumerate(parameters.items()):
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and (index or name != by_position):
            raise SignatureError(
                f"parameter {name!r} is positional-only and would have to be given by name: leave the '/' out",
                parameter=name,
                where=where,
            )
