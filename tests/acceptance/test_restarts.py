"""A publisher that connects is known by its name, in this run and the next."""

from __future__ import annotations

import secrets
import socket
import sys

import pytest

from tests.support import Child, free_endpoint

PUBLISHER = """
import sys
from zroute import App

app = App(pub="connect:" + sys.argv[1], codec="json", name=sys.argv[2])

@app.publisher("readings.a", every=0.05)
def read() -> int:
    return 1

app.run()
"""

SINK = """
import sys
from zroute import App

app = App(sub="bind:" + sys.argv[1], codec="json", name="sink")
seen = []

@app.subscribe("readings.{x}")
def reading(n: int, x: str) -> None:
    seen.append(n)

@app.every(0.05)
def tell() -> None:
    print("seen", bool(seen), flush=True)

app.run(log_level="debug")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="instance numbers need abstract sockets")
def test_a_sink_names_a_publisher_that_was_killed_and_says_that_it_restarted() -> None:
    """The sink's log names the killed publisher, reports its restart, and an unknown loss of the first run."""
    endpoint, app = free_endpoint(), f"sensor-{secrets.token_hex(4)}"
    name = f"{app}@{socket.gethostname()} #1"
    with Child("-c", SINK, endpoint) as sink:
        with Child("-c", PUBLISHER, endpoint, app) as first:
            first.line_with(f"{app}: publishes as {name} (", stream="err")
            sink.line_with(f"publisher {name} (", stream="err")
            sink.line_with("seen True")
            first.process.kill()
            first.process.wait()
        with Child("-c", PUBLISHER, endpoint, app) as second:
            shown = second.line_with(f"{app}: publishes as {name} (", stream="err")
            epoch = shown.rpartition("(")[2]
            restarted = sink.line_with(f"restarted: publisher {name} (", stream="err")
            assert epoch in restarted
            lost = sink.line_with("was replaced by a new run without sending a goodbye", stream="err")
            assert f"publisher {name} (" in lost
            assert epoch not in lost
            assert second.end() == 0
        assert sink.end() == 0
        assert "unknown_losses 1" in sink.err[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="instance numbers need abstract sockets")
def test_two_publishers_of_one_name_are_two() -> None:
    """Two publishers of one name at a sink are not taken for a restart."""
    endpoint, app = free_endpoint(), f"sensor-{secrets.token_hex(4)}"
    with (
        Child("-c", SINK, endpoint) as sink,
        Child("-c", PUBLISHER, endpoint, app) as first,
        Child("-c", PUBLISHER, endpoint, app) as second,
    ):
        for number in (1, 2):
            sink.line_with(f"{app}@{socket.gethostname()} #{number} (", stream="err")
        assert first.end() == second.end() == 0
        assert sink.end() == 0
        assert not [line for line in sink.err if "restarted" in line]
