"""The table of well-known feeds: each row reads messages of its format, over a socket."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest
import pytest_twisted

from tests.acceptance.feeds import FEEDS
from tests.running import Mailbox, running
from tests.support import ROOT
from tests.transports.feed import feeding
from zroute import App, Frames, Topic, startswith
from zroute.messages.frames import NAMED_FORMS
from zroute.messages.topics import Pattern, parse

PAGE = ROOT / "docs" / "how-to" / "foreign-publishers.md"
NAMES = {"Frames": Frames, "startswith": startswith, "dict": dict, "list": list, "str": str, "bytes": bytes}
_CODE = re.compile(r"`(.+)`")


@attrs.frozen
class Row:
    """A row of the table, with its cells as values."""

    name: str
    form: Any
    pattern: Any
    body: Any


def rows() -> list[Row]:
    """Return the rows of the table."""
    table = PAGE.read_text().partition("## Well-known feeds")[2].partition("\n## ")[0]
    lines = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    found = []
    for name, *cells in lines[1:]:
        codes = [_CODE.fullmatch(cell.strip(" |")) for cell in cells]
        found.append(Row(name.strip(), *(eval(code[1], NAMES) for code in codes if code)))
    return found


ROWS = rows()


def prefix_of(row: Row) -> bytes:
    """Return the prefix that the app subscribes to."""
    form = NAMED_FORMS[row.form] if isinstance(row.form, str) else row.form
    pattern = row.pattern if isinstance(row.pattern, Pattern) else parse(row.pattern)
    return pattern.subscription if form.filters else b""


def test_each_feed_has_its_row() -> None:
    """The table and the generators have the same feeds."""
    assert [row.name for row in ROWS] == sorted(FEEDS, key=[row.name for row in ROWS].index)
    assert len(ROWS) == len(FEEDS) == 31


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
async def test_the_lines_of_a_row_read_its_feed(row: Row) -> None:
    """An app with the row's form, pattern and type gets topic and body of each message, decoded."""
    with feeding() as (feed,):
        app, box = App(sub={feed.address: row.form}), Mailbox[tuple[bytes, Any]]()

        def take(body: Any, topic: Topic) -> None:
            box.put((topic.wire, body))

        take.__annotations__["body"] = row.body
        app.subscribe(row.pattern)(take)
        sent = [FEEDS[row.name](number) for number in range(3)]
        async with running(app):
            await feed.subscribed(prefix_of(row))
            for parts, _, _ in sent:
                feed.send(*parts)
            assert await box.until(3) == [(topic, body) for _, topic, body in sent]
        assert (app.stats.malformed, app.stats.unrouted) == (0, 0)
