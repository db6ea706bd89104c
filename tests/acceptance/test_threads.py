"""Threads and forked processes: which calls are allowed, and how the others fail. Real processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal

import pytest

from tests.cli.test_run import module
from tests.commands import zroute
from tests.support import Child
from zroute import App, Attached, WrongThreadError
from zroute.testing import TestApp

reactors = pytest.mark.parametrize("reactor", ["epoll", "asyncio"])

HEAD = """
import os, sys, threading, time
from twisted.internet.defer import Deferred
from zroute import App

app = App()
said = app.publisher("said", str)

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # in one piece, from whichever thread
    sys.stdout.flush()

def trying(what, call):
    try:
        say(what, "gave", call())
    except BaseException as error:
        say(what, type(error).__name__, error)

@app.publisher("go", int, every=60, initial_delay=0.1)
def go() -> int: return 1
"""


def run(tmp_path: Path, source: str, *flags: str) -> Child:
    """Return an app in a separate process."""
    return Child("-m", "zroute", "run", "mine", *flags, cwd=module(tmp_path, HEAD + source, "mine"))


@reactors
def test_from_a_thread_calls_go_to_the_reactor_and_come_back(tmp_path: Path, reactor: str) -> None:
    """app.from_thread calls functions on the reactor, and returns their results, errors and awaited values."""
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
    """publish, attach, stream and close raise in a thread, and from_thread raises on the reactor."""
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
    """A thread that waits for a stopped app gets NotRunningError, and the program exits with 75."""
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


@pytest.mark.parametrize("reactor", ["twisted", "asyncio"])
def test_a_test_app_refuses_the_same(reactor: Literal["twisted", "asyncio"]) -> None:
    """Calls that raise in production raise under TestApp as well."""
    app = App()
    said = app.publisher("said", str)
    handles: list[Attached] = []
    raised: list[type[BaseException]] = []

    @app.on_startup
    def begin() -> None:
        handles.append(app.attach("other", print))

    @app.subscribe("go", thread=True)
    def work(message: int) -> None:
        for call in (
            lambda: said.publish("a"),
            lambda: app.publish("a", 1),
            lambda: app.attach("a", print),
            handles[0].close,
            lambda: app.stream("x").__aenter__().send(None),
        ):
            try:
                call()
            except WrongThreadError as error:
                raised.append(type(error))
        app.from_thread(said.publish, "done")

    with TestApp(app, reactor=reactor) as t:
        t.publish("go", 1)
        assert raised == [WrongThreadError] * 5
        assert t.published("said") == ["done"]


def test_what_waited_for_a_thread_when_it_was_given_up_is_not_called_later(tmp_path: Path) -> None:
    """A queued thread=True call that a stop counts as dropped does not run after resources are closed."""
    source = """
gate = threading.Event()
work = app.publisher("work.{number}", int)

@app.subscribe("go")
def send(message: int):
    for number in range(15):
        work.publish(number, number=number)

@app.subscribe("work.*", thread=True)
def block(number: int):
    say("called", number)
    gate.wait(120)
    say("ended", number)

@app.on_shutdown
def bye():
    say("given up")
    gate.set()
"""
    with run(tmp_path, source, "--drain-timeout", "500ms") as child:
        child.wait_for(lambda lines: sum(line.startswith("called") for line in lines) == 10)
        assert child.end(signal.SIGTERM) == 75
    assert "block(): 15" in "\n".join(child.err)
    after = child.out[child.out.index("given up") + 1 :]
    assert sorted({line.split()[0] for line in after}) == ["ended"]
    assert len(after) == 10


def test_what_has_to_be_awaited_is_refused_from_a_thread(tmp_path: Path) -> None:
    """A Deferred or coroutine from a thread=True function is a failure that names app.from_thread."""
    source = """
async def later(): ...

@app.subscribe("go", thread=True)
def deferred(message: int): return Deferred()

@app.subscribe("go", thread=True)
def coroutine(message: int): return later()
"""
    with run(tmp_path, source) as child:
        lines = child.wait_for(lambda seen: sum("failed on 'go'" in line for line in seen) == 2, stream="err")
        failures = [line for line in lines if "failed on 'go'" in line]
        assert child.end() == 0
    assert "handled 0, failed 2" in "\n".join(child.err)
    assert all("UsageError" in line and "app.from_thread" in line for line in failures)


def test_a_call_that_raised_not_running_is_not_made_afterwards(tmp_path: Path) -> None:
    """A call that raised NotRunningError is not made afterwards."""
    source = """
done = []

@app.on_shutdown
def bye():
    from twisted.internet import reactor
    waiting = len(reactor.threadCallQueue)
    threading.Thread(target=trying, args=("thread", lambda: app.from_thread(done.append, 1))).start()
    while len(reactor.threadCallQueue) == waiting:
        time.sleep(0.001)

app.run(seconds=0.2, log_level="error")
say("done", done)
"""
    with Child(str(module(tmp_path, HEAD + source, "mine") / "mine.py")) as child:
        assert child.end(None) == 0
    assert [line.split()[:2] for line in child.out] == [["thread", "NotRunningError"], ["done", "[]"]]


FORKING = """
import multiprocessing
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
        say("parent got all", app.stats.published)

def fork():
    if sys.argv[-1] == "fork":
        child = os.fork()
        if not child:
            in_child()
            os._exit(0)
        os.waitpid(child, 0)
    else:
        child = multiprocessing.get_context("fork").Process(target=in_child)
        child.start()
        child.join(120)

def in_child():
    import gc
    from twisted.internet import reactor
    trying("publication", lambda: said.publish("a"))
    trying("app", lambda: app.publish("a", 1))
    trying("attach", lambda: app.attach("a", print))
    trying("stream", lambda: app.stream("x").__aenter__().send(None))
    trying("start", lambda: app.service(reactor).startService())
    trying("from_thread", lambda: app.from_thread(len, "a"))
    trying("subscribe", lambda: app.subscribe("late")(print))
    if service is not None:
        service.stopService()  # would close the parent's sockets, and take them out of its epoll set
    gc.collect()

service = None
"""

ON_A_REACTOR = """
def on_a_reactor(name):
    from zroute.runtime.runner import install_reactor
    from twisted.application.service import MultiService
    global service
    reactor = install_reactor(name)
    parent = MultiService()
    service = app.service(reactor)
    service.setServiceParent(parent)
    reactor.callWhenRunning(parent.startService)
    reactor.addSystemEventTrigger("before", "shutdown", lambda: parent.stopService())
    reactor.run()

on_a_reactor(sys.argv[1])
"""
"""An app embedded in another program, instead of ``zroute run``."""


@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
@reactors
def test_a_forked_child_is_told_and_its_parent_goes_on(tmp_path: Path, reactor: str, way: str) -> None:
    """In a forked child, calls that would use the parent's sockets raise; the parent loses no message."""
    source = HEAD + FORKING + ON_A_REACTOR
    with Child(str(module(tmp_path, source, "mine") / "mine.py"), reactor, way) as child:
        child.line_with("parent got all")
        refused = [line.split()[:2] for line in child.out[:-1]]
        names = ["publication", "app", "attach", "stream", "start", "from_thread"]
        assert refused == [*([name, "ForkedContextError"] for name in names), ["subscribe", "AppFrozenError"]], (
            child.out
        )
        assert all("start processes before the app" in line for line in child.out[:-2])
        assert child.out[-1] == "parent got all 2001"
        assert child.end() == 0, child.err
        assert [line for line in child.err if "fork" not in line] == []  # Python 3.12 warns of forks beside threads


@reactors
def test_zroute_run_goes_on_too_when_a_handler_forks(tmp_path: Path, reactor: str) -> None:
    """Under zroute run a handler may fork as well, and the parent continues."""
    with run(tmp_path, FORKING, "--reactor", reactor) as child:
        child.line_with("parent got all")
        assert [line.split()[1] for line in child.out[:-2]] == ["ForkedContextError"] * 6
        assert child.end() == 0
        assert "handled 2001, failed 0" in child.err[-1]


@reactors
def test_an_app_can_start_in_a_child_that_was_forked_before(tmp_path: Path, reactor: str) -> None:
    """An app can start in a process that was forked before any app ran."""
    source = (
        HEAD
        + """
@app.subscribe("go")
def on_go(message: int):
    say("child", message)
    from twisted.internet import reactor
    reactor.callLater(0, reactor.stop)

def work():
    app.run(log_level="error", reactor=sys.argv[1])

if __name__ == "__main__":
    import multiprocessing
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join(120)
        say("exit", child.exitcode)
"""
    )
    with Child(str(module(tmp_path, source, "mine") / "mine.py"), reactor) as child:
        child.wait_for(lambda lines: lines.count("exit 0") == 2)
        assert child.out == ["child 1", "exit 0"] * 2
        child.end(None)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("async def work(message: int): ...", "is async or a generator, but thread=True"),
        ("def work(message: int): yield", "is async or a generator, but thread=True"),
    ],
)
def test_what_can_not_run_in_a_thread_is_said_at_its_line(tmp_path: Path, function: str, says: str) -> None:
    """thread=True with a function that cannot run in a thread raises at its line."""
    folder = module(tmp_path, HEAD + f"@app.subscribe('go', thread=True)\n{function}\n", "mine")
    done = zroute("check", "mine", cwd=folder)
    assert done.returncode == 4
    assert says in done.stderr
    assert "mine.py:" in done.stderr


def test_a_run_has_a_thread_for_each_call_in_flight(tmp_path: Path) -> None:
    """Under `zroute run`, 20 calls that wait for each other end: the pool is not limited to ten threads."""
    source = """
together = threading.Barrier(20)
jobs = app.job_queue("jobs", int)

@app.work("jobs", max_in_flight=20)
def job(number: int) -> None:
    if together.wait(120) == 0:
        say("together")

@app.on_startup
def put() -> None:
    for number in range(20):
        jobs.put_nowait(number)
"""
    with run(tmp_path, source) as child:
        child.line_with("together")
        assert child.end() == 0
