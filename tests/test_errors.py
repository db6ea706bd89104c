"""The tree of errors: base classes, causes and attributes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from zroute import errors
from zroute.errors import (
    DecodeError,
    EncodeError,
    EndpointError,
    EnvelopeError,
    PatternError,
    PeerError,
    SchemaError,
    SetupError,
    SignatureError,
    TopicError,
    UsageError,
    ZrouteError,
)


def tree() -> list[tuple[str, str]]:
    """Return the pairs (name, builtin base) of the tree in the module's docstring."""
    assert errors.__doc__ is not None
    return re.findall(r"[├└]── (\w+Error|Reject|RequestRefused)(?: +\((\w+)\))?", errors.__doc__)


def test_the_docstring_draws_the_whole_tree() -> None:
    """The docstring lists all errors."""
    assert {name for name, _ in tree()} | {"ZrouteError"} == set(errors.__all__)


@pytest.mark.parametrize(("name", "builtin"), tree())
def test_each_error_is_where_the_tree_has_it(name: str, builtin: str) -> None:
    """Each error has the base classes that the tree shows."""
    kind = getattr(errors, name)
    assert issubclass(kind, ZrouteError)
    for base in (ValueError, TypeError):
        assert issubclass(kind, base) == (builtin == base.__name__)


@pytest.mark.parametrize("kind", [SetupError, UsageError, PeerError])
def test_whose_fault_it_is_can_be_told_apart(kind: type[ZrouteError]) -> None:
    """No error belongs to two kinds."""
    others = {SetupError, UsageError, PeerError} - {kind}
    for name in errors.__all__:
        found = getattr(errors, name)
        assert not (issubclass(found, kind) and issubclass(found, tuple(others)))


def test_an_error_of_the_set_up_names_the_users_line() -> None:
    """A SetupError has the line in its text and in ``where``, if there is a line."""
    error = SetupError("wrong", where="app.py:3")
    assert (str(error), error.where) == ("app.py:3: wrong", "app.py:3")
    assert (str(SetupError("wrong")), SetupError("wrong").where) == ("wrong", None)


def test_the_parts_a_program_may_want_are_fields() -> None:
    """Errors have attributes, so that a program need not parse their texts."""
    assert PatternError("m", pattern="p").pattern == "p"
    assert EndpointError("m", endpoint="e").endpoint == "e"
    assert SchemaError("m", schema=int).schema is int
    assert SignatureError("m", parameter="p").parameter == "p"
    assert TopicError("m", topic="t").topic == "t"
    assert EncodeError("m", schema=int).schema is int
    assert EnvelopeError("r", frames=(b"f",)).frames == (b"f",)
    assert PeerError("m", reason="r").reason == "r"


def test_a_decode_error_names_topic_and_reason() -> None:
    """A DecodeError has the topic and the route."""
    error = DecodeError("bad", topic="t", route="f()")
    assert (str(error), error.reason, error.topic, error.route) == ("'t': bad", "bad", "t", "f()")
    assert str(DecodeError("bad")) == "bad"


@pytest.mark.parametrize(
    ("make", "given", "text"),
    [
        (errors.RequestRefusedError, (409, "no"), r"in a handler, raise RequestRefused\(409, 'no'\)"),
        (errors.RequestRefused, ("no symbol",), r"RequestRefused\('no symbol'\): expected a code and a text"),
        (errors.RequestRefused, (), "expected a code and a text"),
        (errors.RequestRefused, ("409", "no"), r"must be an int, as in RequestRefused\(409, 'no'\)"),
    ],
)
def test_a_wrong_refusal_is_explained(make: Any, given: tuple[Any, ...], text: str) -> None:
    """A handler that raises the wrong one of two similar errors, or with other arguments, gets advice."""
    with pytest.raises(errors.UsageError, match=text):
        make(*given)


def test_a_refusal_may_have_a_subclass_with_other_arguments() -> None:
    """The check of the arguments leaves a user's subclass alone."""

    class NoSymbol(errors.RequestRefused):
        def __init__(self, symbol: str) -> None:
            super().__init__(409, f"no symbol {symbol}")

    assert str(NoSymbol("A")) == "409: no symbol A"
