"""Threads and forked processes: what may be used from where, and what happens to the rest. Real processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.test_run import module, zroute
from tests.support import Child

reactors = pytest.mark.parametrize("reactor", ["epoll", "asyncio"])

HEAD = """
import os, sys, threading, time
from twisted.internet.defer import Deferred
from zroute import App

app = App()
said = app.publisher("said", str)

def say(*words):
    print(*words, flush=True)

def trying(what, call):
    try:
        say(what, "gave", call())
    except BaseException as error:
        say(what, type(error).__name__, error)

@app.publisher("go", int, every=60, initial_delay=0.1)
def go() -> int: return 1
"""


def run(tmp_path: Path, source: str, *flags: str) -> Child:
    """An app of its own process."""
    return Child("-m", "zroute", "run", "mine", *flags, cwd=module(tmp_path, HEAD + source, "mine"))


@reactors
def test_from_a_thread_calls_go_to_the_reactor_and_come_back(tmp_path: Path, reactor: str) -> None:
    """Results, errors and awaitables of functions that are called with app.from_thread."""
    source = """
def on_reactor(a, b=0):
    assert threading.current_thread() is threading.main_thread()
    return a + b

def failing():
    raise KeyError("mine")

async def later():
    return 5

def deferred():
    waiting = Deferred()
    from twisted.internet import reactor
    reactor.callLater(0.01, waiting.callback, 6)
    return waiting

@app.subscribe("said")
def heard(text: str): say("heard", text)

@app.subscribe("go", thread=True)
def work(message: int):
    say("main" if threading.current_thread() is threading.main_thread() else "another")
    say(app.from_thread(on_reactor, 1, b=2))
    trying("failing", lambda: app.from_thread(failing))
    say(app.from_thread(later), app.from_thread(deferred))
    app.from_thread(said.publish, "from a thread")
"""
    with run(tmp_path, source, "--reactor", reactor) as child:
        child.line_with("heard from a thread")
        assert child.out == ["another", "3", "failing KeyError 'mine'", "5 6", "heard from a thread"]
        assert child.end() == 0


@reactors
def test_everything_else_in_a_thread_is_refused_and_names_the_way(tmp_path: Path, reactor: str) -> None:
    """publish, attach, stream and close raise before ZeroMQ can abort the process; from_thread on the reactor too."""
    source = """
handles = []

@app.on_startup
def begin():
    handles.append(app.attach("other", print))
    trying("from_thread", lambda: app.from_thread(len, "a"))

def entering():
    app.stream("x").__aenter__().send(None)

@app.subscribe("go", thread=True)
def work(message: int):
    trying("publication", lambda: said.publish("a"))
    trying("app", lambda: app.publish("a", 1))
    trying("attach", lambda: app.attach("a", print))
    trying("close", handles[0].close)
    trying("stream", entering)
    say("alive")
"""
    with run(tmp_path, source, "--reactor", reactor) as child:
        child.line_with("alive")
        assert [line.split()[:2] for line in child.out[:-1]] == [
            ["from_thread", "WrongThreadError"],
            ["publication", "WrongThreadError"],
            ["app", "WrongThreadError"],
            ["attach", "WrongThreadError"],
            ["close", "WrongThreadError"],
            ["stream", "WrongThreadError"],
        ]
        assert all("app.from_thread" in line for line in child.out[1:-1])
        assert "call len() directly" in child.out[0]
        assert child.end() == 0


@reactors
def test_a_thread_that_waits_for_a_stopped_app_is_let_go(tmp_path: Path, reactor: str) -> None:
    """Its call raises NotRunningError, and the program ends with 75, since the handler was unfinished."""
    source = """
@app.subscribe("go", thread=True)
def work(message: int):
    say("waiting")
    trying("from_thread", lambda: app.from_thread(Deferred))
    trying("again", lambda: app.from_thread(print, 1))
"""
    with run(tmp_path, source, "--reactor", reactor, "--drain-timeout", "100ms") as child:
        child.line_with("waiting")
        assert child.end(signal.SIGTERM) == 75
        assert "work(): 1" in "\n".join(child.err)
        assert [line.split()[:2] for line in child.out[1:]] == [
            ["from_thread", "NotRunningError"],
            ["again", "NotRunningError"],
        ]


@reactors
def test_a_forked_child_is_told_and_its_parent_goes_on(tmp_path: Path, reactor: str) -> None:
    """All that would touch the parent's sockets raises in the child; a thousand messages pass before and after."""
    source = """
count = 0
numbers = app.publisher("numbers", int)

def a_thousand():
    for number in range(1000):
        numbers.publish(number)

@app.subscribe("go")
def begin(message: int):
    a_thousand()

@app.subscribe("numbers")
def on_number(number: int):
    global count
    count += 1
    if count == 1000:
        fork()
        a_thousand()
    if count == 2000:
        say("parent got all")

def fork():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    from twisted.internet import reactor
    from zroute.service import AppService
    trying("publication", lambda: said.publish("a"))
    trying("app", lambda: app.publish("a", 1))
    trying("attach", lambda: app.attach("a", print))
    trying("start", lambda: app.service(reactor).startService())
    trying("from_thread", lambda: app.from_thread(len, "a"))
    sys.stdout.flush()
    os._exit(0)
"""
    with run(tmp_path, source, "--reactor", reactor) as child:
        child.line_with("parent got all")
        first = [line.split()[:2] for line in child.out[:-1]]
        names = ["publication", "app", "attach", "start", "from_thread"]
        assert first == [[name, "ForkedContextError"] for name in names], child.out
        assert all("start processes before the app" in line for line in child.out[:-1])
        assert child.end() == 0


def test_an_app_can_start_in_a_child_that_was_forked_before(tmp_path: Path) -> None:
    """With nothing running, fork and then run is fine: multiprocessing's old default."""
    source = (
        HEAD
        + """
@app.subscribe("go")
def on_go(message: int):
    say("child", message)
    from twisted.internet import reactor
    reactor.callLater(0, reactor.stop)

def work():
    app.run(log_level="error")

if __name__ == "__main__":
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(30)
    say("exit", child.exitcode)
"""
    )
    with Child(str(module(tmp_path, source, "mine") / "mine.py")) as child:
        child.line_with("exit 0")
        assert child.out == ["child 1", "exit 0"]
        child.end(None)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("async def work(message: int): ...", "can't run in a thread"),
        ("def work(message: int): yield", "can't run in a thread"),
    ],
)
def test_what_can_not_run_in_a_thread_is_said_at_its_line(tmp_path: Path, function: str, says: str) -> None:
    """thread=True is for plain functions that block."""
    folder = module(tmp_path, HEAD + f"@app.subscribe('go', thread=True)\n{function}\n", "mine")
    done = zroute("check", "mine", cwd=folder)
    assert done.returncode == 4
    assert says in done.stderr
    assert "mine.py:" in done.stderr
