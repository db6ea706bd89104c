"""Trouble of one publisher does not affect others: their connections stay, and no message is lost."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.acceptance.streams import Reader, Stream, proxy, reader, stream
from tests.support import Way

pytestmark = pytest.mark.slow

AWAY = 12.0
"""Seconds for which a publisher is away: several times the timeout after which a reader acts on silence."""


def stay_away() -> None:
    """Wait for the time in which a connection must not be cut."""
    time.sleep(AWAY)


def trouble(publisher: Stream, how: str) -> None:
    """Kill a publisher, or freeze it."""
    if how == "killed":
        publisher.kill()
    else:
        publisher.child.process.send_signal(signal.SIGSTOP)


def check_complete(heard: Reader, healthy: Stream) -> None:
    """Check that all messages of ``healthy`` are handled, in order, and that none is counted as lost."""
    published = healthy.halt()
    assert published > 0
    heard.child.wait_for(lambda _: heard.handled(healthy.name) + heard.state()["lost"] >= published)
    state = heard.state()
    assert state["seen"][healthy.name] == [0, published, published - 1, True]
    assert state["lost"] == 0


@pytest.mark.parametrize(
    ("way", "how", "overflow"),
    [
        ("address", "killed", "drop"),
        ("name", "killed", "drop"),
        ("ipv6", "killed", "drop"),
        ("address", "killed", "wait"),
        ("address", "frozen", "drop"),
        ("name", "frozen", "drop"),
    ],
    indirect=["way"],
)
def test_a_publisher_that_stays_away_cuts_no_other(way: Way, how: str, overflow: str) -> None:
    """If one of two publishers is killed or frozen, the connection to the other stays, and it loses nothing."""
    first, second = way.meeting(), way.meeting()
    with (
        stream(first.bind, "a", overflow=overflow) as lost,
        stream(second.bind, "b", overflow=overflow) as healthy,
        reader(first.connect, second.connect, ready=2) as heard,
    ):
        lost.command("go")
        healthy.command("go")
        heard.wait_for("a", 100)
        heard.wait_for("b", 100)
        trouble(lost, how)
        stay_away()
        check_complete(heard, healthy)
        assert healthy.cuts() == []
        assert heard.connections(second.connect) == 1


@pytest.mark.parametrize(
    ("way", "overflow"),
    [("address", "drop"), ("name", "drop"), ("ipv6", "drop"), ("address", "wait")],
    indirect=["way"],
)
def test_a_publisher_that_dies_behind_a_proxy_cuts_nothing(way: Way, overflow: str) -> None:
    """If a publisher behind a proxy dies and returns, the connection to the proxy is never cut."""
    front, back = way.meeting(), way.meeting()
    entrance = f"connect:{front.connect}"
    with (
        proxy(front.bind, back.bind),
        stream(entrance, "b", overflow=overflow) as healthy,
        stream(entrance, "a", overflow=overflow) as lost,
        reader(back.connect, ready=2) as heard,
    ):
        lost.command("go")
        healthy.command("go")
        heard.wait_for("a", 100)
        heard.wait_for("b", 100)
        lost.kill()
        stay_away()
        before = heard.handled("a")
        with stream(entrance, "a", overflow=overflow) as returned:
            returned.command("go")
            heard.wait_for("a", before + 100)
            check_complete(heard, healthy)
        assert healthy.cuts() == []
        assert heard.connections(back.connect) == 1


def test_a_publisher_with_another_name_takes_the_place_of_a_dead_one(way: Way) -> None:
    """A publisher that replaces a dead one on its endpoint under another name joins, and is not cut."""
    first, second = way.meeting(), way.meeting()
    with (
        stream(first.bind, "old") as dead,
        stream(second.bind, "b") as healthy,
        reader(first.connect, second.connect, ready=2) as heard,
    ):
        dead.command("go")
        healthy.command("go")
        heard.wait_for("old", 100)
        dead.kill()
        before = heard.connections(first.connect)
        with stream(first.bind, "new") as successor:
            successor.command("go")
            heard.wait_for("new", 1)
            stay_away()
            published = successor.halt()
            heard.child.wait_for(lambda _: heard.state()["seen"]["new"][2] == published - 1)
            begun, count, last, gapless = heard.state()["seen"]["new"]
            assert (count, gapless) == (last - begun + 1, True)
            assert successor.cuts() == []
            assert heard.connections(first.connect) == before + 1
        check_complete(heard, healthy)
        assert healthy.cuts() == []


@pytest.mark.parametrize("beside", ["alone", "beside another"])
def test_a_publisher_that_freezes_right_after_its_join_is_silent(way: Way, beside: str) -> None:
    """A publisher that freezes right after its join is logged as silent, though it has published nothing."""
    first, second = way.meeting(), way.meeting()
    others = [second] if beside == "beside another" else []
    with (
        stream(second.bind, "b"),
        stream(first.bind, "a") as frozen,
        reader(first.connect, *(other.connect for other in others), ready=1 + len(others)) as heard,
    ):
        frozen.child.process.send_signal(signal.SIGSTOP)
        silent = re.compile(r"publisher a@.*silent")
        heard.child.wait_for(lambda lines: any(map(silent.search, lines)), stream="err")


def test_a_clean_stop_is_no_protocol_error(way: Way) -> None:
    """A plain publisher that stops and stays away is not logged as an error of the protocol."""
    meeting = way.meeting()
    with reader(meeting.connect, wire="plain") as heard:
        with stream(meeting.bind, "a", wire="plain") as publisher:
            publisher.command("go")
            heard.wait_for("a", 50)
            assert publisher.child.end(signal.SIGTERM) == 0
        heard.child.line_with("event disconnected")
        time.sleep(3)  # three times the interval between the reader's attempts to connect
        assert not [line for line in heard.child.err if "connection closed" in line or "incompatible type" in line]


def test_a_quick_restart_keeps_its_new_connection(way: Way) -> None:
    """After a quick restart on the plain wire, no message of the new run is missing, and nothing is cut."""
    meeting = way.meeting()
    with (
        reader(meeting.connect, wire="plain") as heard,
        stream(meeting.bind, "old", wire="plain") as old,
        stream(meeting.bind, "new", wire="plain", waits=True) as new,
    ):
        old.command("go")
        heard.wait_for("old", 50)
        assert old.child.end(signal.SIGTERM) == 0
        new.command("start")
        new.child.line_with("up")
        new.command("go")
        heard.wait_for("new", 1)
        time.sleep(3)  # three times the interval between the reader's attempts to connect
        published = new.halt()
        heard.child.wait_for(lambda _: heard.state()["seen"]["new"][2] == published - 1)
        begun, count, last, gapless = heard.state()["seen"]["new"]
        assert (count, gapless) == (last - begun + 1, True)
        assert new.cuts() == []
        assert not [line for line in heard.child.err if "connection closed" in line or "incompatible type" in line]
