"""The checks of a message against its type, before it is sent."""

from __future__ import annotations

import datetime
import math
import typing
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.messages.kinds import (
    DECLARED,
    Box,
    Level,
    Nested,
    Plain,
    Point,
    Positive,
    Side,
    Tree,
    Typed,
)
from tests.support import sized
from zroute.errors import EncodeError
from zroute.messages.codecs import JSON, MSGPACK
from zroute.messages.encode_checks import conforms, misfit

Short = Annotated[str, msgspec.Meta(max_length=3)]
Few = Annotated[list[int], msgspec.Meta(max_length=2)]


@attrs.define
class Detailed(Plain):
    extra: str = ""


@attrs.define
class Limited:
    word: Short
    few: Few


class Asked(TypedDict):
    name: str
    side: NotRequired[Side]


def fits(schema: Any, message: Any) -> bool:
    """Return True if ``value`` conforms; an error in the check counts as False."""
    try:
        return conforms(schema)(message)
    except Exception:
        return False


# -- conforming messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECLARED)
@given(data=st.data())
@settings(max_examples=sized(15, 5))
def test_every_good_message_conforms(kind: str, data: st.DataObject) -> None:
    """No valid message is refused."""
    schema, values = DECLARED[kind]
    assert conforms(schema)(data.draw(values))


SECONDS = datetime.timezone(datetime.timedelta(seconds=561))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Plain, Plain(None, 1.0, 1)),  # type: ignore[arg-type]
        (Plain, Plain("A", "1", 1)),  # type: ignore[arg-type]
        (Plain, Plain("A", 1.0, True)),
        (Plain, Plain("A", 1.0, 1.0)),  # type: ignore[arg-type]
        (Plain, Plain("A", math.nan, 1)),
        (Plain, Plain("A", 2**53 + 1, 1)),
        (Plain, Plain("A", 1.0, 2**64)),
        (Plain, Detailed("A", 1.0, 1)),
        (Box[int], Box("x")),
        (Nested, Nested(Plain("A", 1.0, 1), (), {})),  # type: ignore[arg-type]
        (Nested, Nested(Plain("A", 1.0, 1), [], {"a": Detailed("A", 1.0, 1)})),
        (Tree, Tree(1, [Tree(2, [Tree("3")])])),  # type: ignore[arg-type]
        (Point, (1, 2.0)),
        (Point, Point("1", 2.0)),  # type: ignore[arg-type]
        (Typed, {"name": "x", "more": 1}),
        (Typed, {"side": "buy"}),
        (Asked, {"side": Side.BUY}),
        (list[str], ["a", 1]),
        (list[int], (1, 2)),
        (Sequence[int], (1, 2)),
        (Mapping[str, int], {"a": "b"}),
        (dict[int, str], {"1": "a"}),
        (set[int], [1]),
        (set[int], frozenset([1])),
        (tuple[int, str], (1, "a", 2)),
        (tuple[int, ...], (1, "a")),
        (tuple[()], (1,)),
        (Literal["a", 1], "b"),
        (Literal["a", 1], True),
        (Side, "buy"),
        (Level, 1),
        (int | None, "1"),
        (Positive, -1),
        (Limited, Limited("long", [])),
        (Limited, Limited("abc", [1, 2, 3])),
        (Decimal, Decimal("NaN")),
        (datetime.datetime, datetime.datetime(1900, 1, 1, tzinfo=SECONDS)),
        (datetime.time, datetime.time(1, tzinfo=SECONDS)),
        (datetime.date, datetime.datetime(2020, 1, 1)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)
def test_a_message_that_readers_would_refuse_or_get_changed_is_held_back(schema: Any, message: Any, codec: Any) -> None:
    """A part of a wrong type is found in the publisher, at any depth."""
    assert not fits(schema, message)
    with pytest.raises(EncodeError, match=r"(?i)expected"):
        codec.encoder(schema)(message)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Plain, Plain("A", 187, 1)),
        (Asked, {"name": "x"}),
        (Limited, Limited("abc", [1, 2])),
        (Sequence[int], [1]),
        (tuple[()], ()),
        (datetime.datetime, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
        (typing.Union[Plain, None], None),  # noqa: UP007  # this spelling is read as well
    ],
    ids=repr,
)
def test_what_arrives_equal_is_let_through(schema: Any, message: Any) -> None:
    """An int may replace an equal float (PEP 484), and optional keys may be missing."""
    assert fits(schema, message)
    for codec in (JSON, MSGPACK):
        assert codec.decoder(schema)(codec.encoder(schema)(message)) == message


@pytest.mark.parametrize(
    ("schema", "message", "found"),
    [
        (Nested, Nested(Plain("A", 1.0, 1), [], {"a": Plain("A", 1.0, "1")}), (".by_name['a'].volume", int, "1")),  # type: ignore[arg-type]
        (list[Box[int]], [Box(1), Box("x")], ("[1].content", int, "x")),
        (Asked, {"name": 3}, (".name", str, 3)),
        (Plain, 3, ("", Plain, 3)),
    ],
    ids=repr,
)
def test_the_place_that_does_not_fit_is_found(schema: Any, message: Any, found: Any) -> None:
    """The error names the wrong field, its value and the expected type."""
    assert misfit(schema, message) == found
