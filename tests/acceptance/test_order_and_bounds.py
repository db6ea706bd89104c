"""Order, bounds and pausing, between real processes over real sockets."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_run import module
from tests.support import Child, free_endpoint

reactors = pytest.mark.parametrize("reactor", ["epoll", "asyncio"])


def worked(reactor: str, mode: str, total: int, bound: int) -> dict[str, Any]:
    """What the sink says after ``total`` messages on 50 topics."""
    seed = random.randrange(10**6)
    print("seed", seed)
    settings = {"TOTAL": str(total), "TOPICS": "50", "BOUND": str(bound), "MODE": mode, "SEED": str(seed)}
    settings |= {"SOURCE": free_endpoint(), "SINK": free_endpoint()}
    command = ("-m", "zroute", "run", "--reactor", reactor)
    with (
        Child(*command, "tests.acceptance.turns:sink", env=settings) as sink,
        Child(*command, "tests.acceptance.turns:source", env=settings) as source,
    ):
        outcome: dict[str, Any] = json.loads(sink.line_with('"once"'))
        assert sink.end(None) == 0
        assert "failed 0, unrouted 0, malformed 0" in sink.err[-1]
        assert source.end() == 0
    return outcome


@reactors
def test_20000_messages_that_end_at_random_are_handled_once_in_order_within_the_bound(reactor: str) -> None:
    """On 50 topics, at most 20 in flight: each once, each topic in its order, never one more than the bound."""
    assert worked(reactor, "ordered", 20_000, 20) == {"once": True, "in order": True, "peak": 20, "faults": []}


@reactors
def test_without_order_the_bound_still_holds(reactor: str) -> None:
    """ordered=False: each message once, side by side, never more than the bound."""
    outcome = worked(reactor, "unordered", 5000, 20)
    assert (outcome["once"], outcome["peak"], outcome["faults"]) == (True, 20, [])


@reactors
def test_handlers_in_threads_keep_the_order_of_their_topics(reactor: str) -> None:
    """thread=True: real threads, as many as the bound allows, and no two of one topic."""
    outcome = worked(reactor, "thread", 2000, 5)
    assert (outcome["once"], outcome["in order"], outcome["faults"]) == (True, True, [])
    assert 1 < outcome["peak"] <= 5


STUCK = """
import os
from twisted.internet.defer import Deferred
from zroute import App, as_awaitable

app = App(sub=os.environ["ENDPOINT"])
stuck = []

@app.subscribe("n", queue=1)
async def on_n(n: int):
    if n < 10**6:
        stuck.append(Deferred())
        await as_awaitable(stuck[0])
    elif not done:
        done.append(n)
        print("after", flush=True)

done = []

def let_go(*_):
    stuck[0].callback(None)

import signal

@app.on_startup
def listen():
    from twisted.internet import reactor
    signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(let_go))
"""

FLOOD = """
import os
from zroute import App
app = App(pub=os.environ["ENDPOINT"])

@app.publisher("n", int, every=0.001)
def flood() -> int:
    return int(os.environ["NUMBER"])
"""


def cpu_seconds(child: Child) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@reactors
def test_a_paused_app_rests_and_keeps_its_subscriptions(tmp_path: Path, reactor: str) -> None:
    """While a full route pauses it a flood costs next to nothing, and a publisher that restarts is heard later."""
    endpoint = free_endpoint()
    module(tmp_path, STUCK, "stuck")
    module(tmp_path, FLOOD, "flood")

    def flood(number: int) -> Child:
        return Child("-m", "zroute", "run", "flood", cwd=tmp_path, env={"ENDPOINT": endpoint, "NUMBER": str(number)})

    command = ("-m", "zroute", "run", "stuck", "--reactor", reactor)
    with Child(*command, cwd=tmp_path, env={"ENDPOINT": endpoint}) as child:
        with flood(1) as first:
            line = child.line_with("is full", stream="err")
            assert "on_n() at stuck.py:" in line
            before = cpu_seconds(child)
            with Child("-c", "import time; time.sleep(2)") as pause:  # real time has to pass: that is what is measured
                pause.end(None)
            spent = cpu_seconds(child) - before
            print(f"a paused app spent {spent:.3f} s of CPU in 2 s")
            assert spent < 0.2
            first.end(signal.SIGKILL)
        with flood(10**6) as second:
            second.line_with("publishes, bound to", stream="err")
            with Child("-c", "import time; time.sleep(2.5)") as pause:  # a heartbeat of libzmq would be due meanwhile
                pause.end(None)
            child.process.send_signal(signal.SIGUSR1)
            child.line_with("after")
            child.line_with("flows again", stream="err")
            assert child.end() == 0
            assert second.end() == 0
