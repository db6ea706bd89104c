"""Texts of peers in log lines."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from zroute.logs import printable

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_no_control_character_and_no_mark_of_direction_is_left() -> None:
    """Control characters and bidirectional marks are printed as ASCII escapes."""
    every = map(chr, range(sys.maxunicode + 1))
    dangerous = [mark for mark in every if unicodedata.category(mark) in ("Cc", "Zl", "Zp")]
    for mark in (*dangerous, *BIDI, "\ufeff", "\u00ad", "\u200b", "\U000e0041"):
        shown = printable(f"a{mark}b")
        assert shown.isascii()
        assert shown.isprintable()
        assert shown[0] + shown[-1] == "ab"
        assert json.loads(f'"{shown}"') == f"a{mark}b"


@pytest.mark.parametrize("text", ["", "Grüße 東京 🎉", "C:\\new", "1\u00a0000", "\u0645\u06cc\u200c\u062e", "a'b\"c"])
def test_text_that_is_fit_to_be_read_stays_as_it_is(text: str) -> None:
    """Names in any language, with their spaces and joiners, stay unchanged."""
    assert printable(text) == printable(text.encode()) == text


def test_bytes_that_are_no_text_are_escaped_one_by_one() -> None:
    """A topic in bytes is printed like the same topic as text."""
    assert printable(b"ok\xff\x9b") == printable("ok\udcff\udc9b") == "ok\\udcff\\udc9b"


def test_an_object_is_shown_by_its_text() -> None:
    """An exception is printed by its text, also if its __str__ fails."""

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise LookupError

    assert printable(ValueError("two\nlines")) == "two\\nlines"
    assert printable(BrokenError()) == "<BrokenError, whose text can't be created: LookupError>"


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("x" * 10, 10, "x" * 10),
        ("x" * 11, 10, "x" * 10 + "… (11 characters)"),
        ("ab\x1b" * 4, 10, "ab\\u001bab… (12 characters)"),
        ("\x1b" * 1_000_000, 12, "\\u001b\\u001b… (1000000 characters)"),
        ("x" * 10_000, None, "x" * 10_000),
    ],
)
def test_a_long_text_is_cut_where_i_can_see_it(text: str, most: int | None, shown: str) -> None:
    """A long text is cut to the given length of its escaped form, never within an escape."""
    assert printable(text, most) == shown


def test_a_line_of_a_log_has_a_bound_by_itself() -> None:
    """By default, a text of a megabyte is cut."""
    assert len(printable(b"\xff" * 1_000_000)) < 1100
