"""Messages that a reader has not received when it stops count as lost or as an unknown loss, not as zero."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.acceptance.streams import Reader, Stream, proxy, reader, stream
from tests.support import Way

pytestmark = pytest.mark.slow


@contextmanager
def two_publishers(way: Way, hop: str) -> Iterator[tuple[Stream, Stream, Reader]]:
    """Run two publishers and a reader that is joined to both, directly or through a proxy."""
    first, second = way.meeting(), way.meeting()
    if hop == "direct":
        with (
            stream(first.bind, "a") as one,
            stream(second.bind, "b") as other,
            reader(first.connect, second.connect, ready=2) as heard,
        ):
            yield one, other, heard
        return
    with (
        proxy(first.bind, second.bind),
        stream(f"connect:{first.connect}", "a") as one,
        stream(f"connect:{first.connect}", "b") as other,
        reader(second.connect, ready=2) as heard,
    ):
        yield one, other, heard


@pytest.mark.parametrize(
    ("way", "hop", "seconds"),
    [
        *(("address", hop, seconds) for hop in ("direct", "proxy") for seconds in (0.3, 1.0, 3.0)),
        *((way, hop, 1.0) for hop in ("direct", "proxy") for way in ("name", "ipv6")),
    ],
    indirect=["way"],
)
def test_a_killed_publisher_is_an_unknown_loss_at_the_stop(way: Way, hop: str, seconds: float) -> None:
    """A publisher killed with unsent messages is an unknown loss when the reader stops, soon or later."""
    with two_publishers(way, hop) as (dying, healthy, heard):
        dying.command("go")
        healthy.command("go")
        heard.wait_for("a", 100)
        heard.wait_for("b", 100)
        dying.command("die")
        assert dying.child.end(None) == -signal.SIGKILL
        time.sleep(seconds)
        state = heard.stop()
        assert state["unknown"] >= 1
        lines = [line for line in heard.child.err if "unknown losses of" in line]
        assert lines
        # Behind a proxy it has no name until it sends one.
        assert hop == "proxy" or any("publisher a@" in line for line in lines)


def check_truth(state: Any, published: int) -> None:
    """Check that some messages were not handled, and that the counters show it."""
    handled = state["seen"]["a"][1]
    assert handled < published, "the reader had no backlog"
    assert handled + state["dropped"] + state["lost"] == published or state["unknown"] >= 1


@pytest.mark.parametrize(
    ("way", "overflow", "beside"),
    [
        ("address", "drop", False),
        ("name", "drop", False),
        ("ipv6", "drop", False),
        ("address", "wait", False),
        ("address", "drop", True),
        ("address", "wait", True),
    ],
    indirect=["way"],
)
def test_a_reader_that_stops_behind_a_publisher_hides_no_backlog(way: Way, overflow: str, beside: bool) -> None:
    """If a publisher and then its slow reader stop, the reader's backlog is counted."""
    first, second = way.meeting(), way.meeting()
    with (
        stream(second.bind, "b"),
        stream(first.bind, "a", overflow=overflow, each=20, total=8000) as publisher,
        reader(first.connect, *[second.connect] * beside, ready=1 + beside, slow=0.005) as heard,
    ):
        publisher.command("go")
        assert publisher.published() == 8000
        assert publisher.child.end(signal.SIGTERM) in (0, 75)
        check_truth(heard.stop(), 8000)


@pytest.mark.parametrize(
    ("way", "overflow"),
    [("address", "drop"), ("name", "drop"), ("ipv6", "drop"), ("address", "wait")],
    indirect=["way"],
)
def test_a_reader_that_stops_hides_no_backlog(way: Way, overflow: str) -> None:
    """If a slow reader stops while its publisher continues, its backlog is counted."""
    meeting = way.meeting()
    with (
        stream(meeting.bind, "a", overflow=overflow, each=200, total=20_000) as publisher,
        reader(meeting.connect, pause=0.001) as heard,
    ):
        publisher.command("go")
        assert publisher.published() == 20_000
        heard.wait_for("a", 2000)
        check_truth(heard.stop(), 20_000)
