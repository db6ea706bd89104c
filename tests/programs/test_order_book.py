"""Order books: the subscriber's books equal the publisher's after every message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.programs.terminal import commands, ended
from zroute import Gap
from zroute.testing import TestApp

Example = Callable[[str], Any]


def test_the_books_are_equal_after_every_change(test_app: Callable[..., TestApp], example: Example) -> None:
    """The desk has the whole books at its start, and the same books after each change."""
    program = example("order_book")
    program.books["ACME"].update({95: 300, 101: 200})
    t = test_app(program.feed, program.desk)
    assert program.followed == program.books  # the feed has changed one of them already
    assert program.followed["ACME"]
    for _ in range(101):
        t.advance(0.005)
        assert program.followed == program.books
    assert program.changes > 90
    assert program.wrong == 0


def test_after_a_gap_a_book_is_forgotten(test_app: Callable[..., TestApp], example: Example) -> None:
    """Changes are ignored until the next snapshot, and those of another publisher too."""
    program = example("order_book")
    t = test_app(program.feed, program.desk)
    t.advance(0.1)
    (source,) = set(program.sources.values())
    program.forget(Gap(b"book.", 1, 1, 2))
    assert len(program.followed) == 3
    program.forget(Gap(b"book.", int(source, 16), 1, 2))
    t.advance(0.1)
    assert program.followed == {}


def changes(lines: list[str]) -> int:
    """Return the number of changes in the last line of the desk, once it has all books."""
    shown = [line.split() for line in lines if " books, " in line]
    assert all(line[4] == "0" for line in shown), shown
    return int(shown[-1][2]) if shown and shown[-1][0] == "3" else 0


def test_as_its_docstring_says(folder: Path) -> None:
    """The desk starts late, and again; the feed is restarted: all books, and none is ever wrong."""
    run_feed, run_desk = commands(folder, "order_book.py")
    with run_desk.start() as first:
        with run_feed.start() as feed:
            first.wait_for(lambda lines: changes(lines) > 200)
            with run_desk.start() as second:
                second.wait_for(lambda lines: changes(lines) > 100)
                ended(second)
            ended(feed)
        before = changes(first.out)
        with run_feed.start() as feed:
            first.wait_for(lambda lines: changes(lines) > before + 200)
            ended(feed)
        ended(first)
