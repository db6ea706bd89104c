"""The readers' checks of integers and floats, wherever a type can hold them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from tests.messages.kinds import Box, Circle, Nested, Plain, Point, Private, Struct, Tree, Typed
from zroute.errors import DecodeError
from zroute.messages.decode_checks import HIGHEST, LOWEST, compile_check, compile_reader, is_bounded


@pytest.mark.parametrize(
    "value",
    [HIGHEST + 1, LOWEST - 1, math.nan, math.inf, [math.nan], {"a": [HIGHEST + 1]}, {HIGHEST + 1: 1}, (1, -math.inf),
     Plain("a", math.nan, 1), Point(HIGHEST + 1, 1.0), Struct(b"", (HIGHEST + 1, ""), (), set(), frozenset())],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_number_out_of_bounds_is_found_wherever_it_is(value: Any) -> None:
    """A bad number is found alone, and in lists, maps, keys, classes and named tuples."""
    assert not is_bounded(value)


@pytest.mark.parametrize(
    "value", [HIGHEST, LOWEST, 1.5, True, None, "x", b"", [1, [2.5]], Plain("a", 1.0, 1), {1, 2}], ids=repr
)
def test_everything_else_is_in_bounds(value: Any) -> None:
    """The largest and smallest 64-bit integers pass, and values that are not numbers pass."""
    assert is_bounded(value)


def test_only_what_a_type_can_hold_is_checked() -> None:
    """JSON needs no check for a type without integers, nor msgpack for one without floats."""
    assert compile_check(Circle, ints=True, floats=False) is None
    assert compile_check(Private, ints=True, floats=True) is None
    assert compile_check(Plain, ints=True, floats=False) is not None
    assert compile_check(str, ints=True, floats=True) is None


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (int, 1, HIGHEST + 1),
        (int | None, None, HIGHEST + 1),
        (list[int], [1], [1, LOWEST - 1]),
        (dict[str, int], {"a": 1}, {"a": HIGHEST + 1}),
        (dict[int, str], {1: "a"}, {HIGHEST + 1: "a"}),
        (tuple[str, int], ("a", 1), ("a", HIGHEST + 1)),
        (int | list[int], [1], [HIGHEST + 1]),
        (Nested, Nested(Plain("a", 1.0, 1), []), Nested(Plain("a", 1.0, HIGHEST + 1), [])),
        (Box[int], Box(1), Box(HIGHEST + 1)),
        (Tree, Tree(1, [Tree(2)]), Tree(1, [Tree(2, [Tree(HIGHEST + 1)])])),
        (Typed, {"name": "a"}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_check_of_a_type_looks_at_all_its_integers(schema: Any, good: Any, bad: Any) -> None:
    """Nested, optional, contained, union and recursive integers are all checked."""
    check = compile_check(schema, ints=True, floats=False)
    if bad is None:
        assert check is None
        return
    assert check is not None
    assert check(good)
    assert not check(bad)


def test_a_reader_refuses_in_words() -> None:
    """The error of a reader says what was wrong with the number."""
    read = compile_reader(msgspec.json.Decoder(list[int]).decode, list[int], utf8=True, ints=True, floats=False)
    assert read(b"[1]") == [1]
    with pytest.raises(DecodeError, match="exceeds 64 bits"):
        read(b"[99999999999999999999]")
    with pytest.raises(UnicodeDecodeError):
        read(b"[\xff]")


def test_a_reader_that_has_nothing_to_look_at_is_the_engine_itself() -> None:
    """A type that needs no check is read by the engine's own function."""
    decode = msgspec.msgpack.Decoder(Private).decode
    assert compile_reader(decode, Private, utf8=False, ints=False, floats=True) is decode
