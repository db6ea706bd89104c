"""If the clock of the machine is set, or the machine sleeps, timers and timeouts of a running app are not affected."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support import Child, free_endpoint
from zroute.runtime.runner import REACTORS

pytestmark = pytest.mark.slow

STEPS = pytest.mark.parametrize("step", [-100_000, 100_000])
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

# In Python the clock is set, since all code that reads it calls `time.time`. The command to set it arrives by standard
# input in a thread, since the main thread may be idle. A fork would have imported Twisted with the true clock before.
SET_BY_INPUT = """
import sys, threading, time
wall, step = time.time, 0
time.time = lambda: wall() + step

def set_clock():
    global step
    step = float(sys.stdin.readline())
    print("set", flush=True)

threading.Thread(target=set_clock, daemon=True).start()
"""

APP = """
from twisted.internet.defer import Deferred
from zroute import App

app = App()
ticks = 0

@app.every(0.05)
def tick():
    global ticks
    ticks += 1
    print("tick", flush=True)
    if ticks == 5:
        from twisted.internet import reactor
        reactor.callLater(3600, print, "an hour is over", flush=True)

@app.publisher("job", every=0.05)
def job() -> int:
    return ticks

@app.subscribe("job")
def on_job(n: int):
    return Deferred() if n > 5 else None
"""

RUN = """
uvloop = sys.argv[1] == "uvloop"
app.run(reactor=None if uvloop else sys.argv[1], uvloop=uvloop, drain_timeout=0.3)
"""

EMBEDDED = """
import logging, signal
logging.basicConfig(format="%(message)s")
from zroute.runtime.runner import install_reactor
uvloop = sys.argv[1] == "uvloop"
reactor = install_reactor(None if uvloop else sys.argv[1], uvloop=uvloop)
own = reactor.callLater(100, print, "100 s are over", flush=True)
service = app.service(reactor)
service.drain_timeout = 0.3

def stopped(drained):
    print("complete", drained.complete, flush=True)
    own.reset(200)
    reactor.callLater(0.3, reactor.stop)

def stop(*_):
    reactor.callFromThread(lambda: service.stopService().addCallback(stopped))

reactor.callWhenRunning(service.startService)
reactor.callWhenRunning(signal.signal, signal.SIGTERM, stop)
reactor.run()
"""


@STEPS
@pytest.mark.parametrize(
    ("program", "reactor"),
    [
        *[pytest.param(RUN, name, id=f"run-{name}") for name in (*REACTORS, "uvloop")],
        *[pytest.param(EMBEDDED, name, id=f"embedded-{name}") for name in ("epoll", "asyncio")],
    ],
)
def test_timers_and_drain_timeouts_go_on_when_the_clock_is_set(program: str, reactor: str, step: int) -> None:
    """If the clock jumps by a day, timers go on, timeouts and stops keep their time, and the log reports it."""
    if reactor == "uvloop":
        pytest.importorskip("uvloop")
    with Child("-c", SET_BY_INPUT + APP + program, reactor, fresh=True) as child:
        child.wait_for(lambda lines: lines.count("tick") > 10)
        child.write(f"{step}\n")
        child.line_with("set")
        said = child.line_with("the clock of this machine was set", stream="err")
        assert f"{'back' if step < 0 else 'forward'} by {abs(step):.1f} s" in said
        seen = len(child.out)
        child.wait_for(lambda lines: len(lines) > seen + 20)
        code = child.end(signal.SIGTERM)
    if program is RUN:
        assert code == 75, child.err  # handlers that wait for ever are given up after the drain timeout
    else:
        assert (code, "complete False" in child.out) == (0, True), child.err
    assert not [line for line in child.out if "over" in line]
    assert sum("the clock of this machine" in line for line in child.err) == 1


IDLE = """
app = App(sub="tcp://127.0.0.1:1")
app.subscribe("a")(print)
"""


def test_an_app_that_nothing_happens_to_notices_it_too() -> None:
    """An app without messages and timers notices the change as well."""
    with Child("-c", SET_BY_INPUT + "from zroute import App\n" + IDLE + RUN, "epoll", fresh=True) as child:
        child.line_with("subscribes, connects", stream="err")
        child.write("-3600\n")
        child.line_with("set back by 3600.0 s", stream="err")
        assert child.end(signal.SIGTERM) == 0


BEATS = """
import sys, time
from zroute import App
app = App({side}=sys.argv[1], name="{side}")
"""

PUBLISHER = (
    BEATS.format(side="pub")
    + """
@app.publisher("a", every=0.05)
def tick() -> int: return 1
app.run()
"""
)

READER = (
    BEATS.format(side="sub")
    + """
@app.subscribe("a")
def on_tick(n: int): print("got", flush=True)
app.run()
"""
)


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime")
@pytest.mark.parametrize("faked", [PUBLISHER, READER], ids=["publisher", "reader"])
def test_the_clock_of_the_system_is_set_back(tmp_path: Path, faked: str) -> None:
    """If libfaketime sets the clock of one of two processes back, messages still arrive."""
    shift = tmp_path / "shift"
    shift.write_text("+0s")
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(shift),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    endpoint = free_endpoint()
    with (
        Child("-c", PUBLISHER, endpoint, env=environment if faked is PUBLISHER else None) as publisher,
        Child("-c", READER, endpoint, env=environment if faked is READER else None) as reader,
    ):
        reader.wait_for(lambda lines: len(lines) > 10)
        new = tmp_path / "new"
        new.write_text("-3600s")
        os.replace(new, shift)
        (publisher if faked is PUBLISHER else reader).line_with("set back by 3600", stream="err")
        seen = len(reader.out)
        reader.wait_for(lambda lines: len(lines) > seen + 20)
        assert reader.end(signal.SIGTERM) == 0
        assert publisher.end(signal.SIGTERM) == 0
        assert "lost 0" in reader.err[-1]
