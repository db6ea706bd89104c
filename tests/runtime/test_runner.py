"""`zroute.runtime.runner` always drains, reports how it ended, and ends in bounded time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_run import LOOP, module
from tests.commands import zroute
from tests.interpreters import start
from tests.support import PATIENCE, Child, free_endpoint
from zroute import App
from zroute.endpoints import parse_ends
from zroute.errors import UsageError
from zroute.runtime.reports import _counters
from zroute.runtime.runner import REACTORS, install_reactor

HEAD = "from twisted.internet.defer import Deferred, fail\nfrom zroute import App\napp = App()\n"
GO = "\n@app.publisher('go', every=0.02)\ndef publish() -> int: return 1\n"


def run(folder: Path, *options: str) -> Child:
    """Run the app in quotes.py as a child process."""
    return Child("-m", "zroute", "run", "quotes", "--app-dir", str(folder), *options)


@contextmanager
def buffered(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The same with buffered output that is not read; killed after the test."""
    arguments = ("-m", "zroute", "run", "quotes", "--app-dir", str(folder), *options)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(*arguments, env={"PYTHONUNBUFFERED": ""}, text=True, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


def test_the_installed_reactor_is_given_and_another_one_is_refused() -> None:
    """A request for a reactor names the one that is already installed."""
    installed = install_reactor(None)
    names = [name for name, module in REACTORS.items() if module != type(installed).__module__]
    with pytest.raises(UsageError, match=f"{type(installed).__name__} is already installed"):
        install_reactor(names[0])


def test_a_reactor_the_platform_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """--reactor epoll on macOS fails with one line."""
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor")
    monkeypatch.setitem(REACTORS, "epoll", "twisted.internet.no_such_reactor")
    with pytest.raises(UsageError, match="does not support the 'epoll' reactor"):
        install_reactor("epoll")


UVLOOP_TOO_LATE = """
from twisted.internet import asyncioreactor
asyncioreactor.install()
from zroute import App
App().run(uvloop=True)
"""

UVLOOP_IN_A_SCRIPT = """
import asyncio
from zroute import App
app = App()

@app.on_startup
def up():
    print(type(asyncio.get_event_loop()).__module__)

app.run(uvloop=True, seconds=0.01)
"""


def test_a_script_may_ask_for_uvloop_too(tmp_path: Path) -> None:
    """app.run(uvloop=True) equals --uvloop, and is refused if another loop is installed."""
    pytest.importorskip("uvloop")
    with Child("-c", UVLOOP_IN_A_SCRIPT, fresh=True) as child:
        assert (child.end(None), child.out) == (0, ["uvloop"])
    with Child("-c", UVLOOP_TOO_LATE, fresh=True) as child:
        assert child.end(None) == 1
        assert "on a loop other than uvloop" in child.err[-1]


@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
def test_a_handler_may_stop_the_reactor(tmp_path: Path, reactor: str) -> None:
    """reactor.stop() in a handler drains like a signal, with on_shutdown and the summary."""
    source = (
        HEAD
        + GO
        + """
@app.subscribe("go")
def go(n: int):
    from twisted.internet import reactor
    if not stops:  # a second message may have arrived
        stops.append(n)
        reactor.stop()

stops = []

@app.on_shutdown
def bye():
    print("bye")
"""
    )
    done = zroute("run", "quotes", "--reactor", reactor, cwd=module(tmp_path, source))
    assert (done.returncode, done.stdout) == (0, "bye\n"), done.stderr
    received, handled = re.search(r"received (\d+), handled (\d+), failed 0,", done.stderr).groups()  # type: ignore[union-attr]
    assert received == handled != "0"


def test_a_thread_that_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    """A blocked thread is named, and the process ends with 75."""
    source = (
        HEAD
        + GO
        + """
import time
from twisted.internet.threads import deferToThread

@app.subscribe("go")
def go(n: int):
    print("in", flush=True)
    return deferToThread(time.sleep, 1000)
"""
    )
    with run(module(tmp_path, source), "--drain-timeout", "100ms") as child:
        child.line_with("in")
        assert child.end(signal.SIGTERM) == 75
    said = "\n".join(child.err)
    assert "go(): " in said
    assert "threads are still running" in said


@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
def test_an_on_shutdown_that_never_ends_is_given_up(tmp_path: Path, reactor: str) -> None:
    """A hook that waits forever is named, and the process ends with 75."""
    source = HEAD + "import asyncio\n@app.on_startup\ndef up(): print('up', flush=True)\n"
    wait = "await asyncio.sleep(1000)" if reactor == "asyncio" else "await Deferred()"
    source += f"@app.on_shutdown\nasync def flush_database():\n    {wait}\n"
    with run(module(tmp_path, source), "--drain-timeout", "100ms", "--reactor", reactor) as child:
        child.line_with("up")
        assert child.end(signal.SIGTERM) == 75
    assert "flush_database(): 1" in "\n".join(child.err)


def test_an_on_startup_that_never_ends_can_be_stopped(tmp_path: Path) -> None:
    """Ctrl-C during a start ends the process."""
    source = HEAD + "@app.on_startup\ndef up():\n    print('up', flush=True)\n    return Deferred()\n"
    with run(module(tmp_path, source)) as child:
        child.line_with("up")
        assert child.end(signal.SIGINT) == 0
    assert "was stopped before the app had started" in "\n".join(child.err)


def test_a_second_signal_ends_a_handler_that_prints_into_a_full_pipe(tmp_path: Path) -> None:
    """A process with unread output ends at a second signal, with the code of the signal that it handles last."""
    source = HEAD + GO + "@app.subscribe('go')\ndef go(n: int): print('x' * 10_000_000)\n"
    with buffered(module(tmp_path, source)) as child:
        assert child.stdout is not None
        os.read(child.stdout.fileno(), 1)  # the child is now inside a print that is larger than any pipe
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        # If both are pending, the kernel may run their handlers in either order.
        assert child.wait(PATIENCE) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        child.communicate()


def test_a_reader_that_goes_away_does_not_take_the_summary(tmp_path: Path) -> None:
    """`zroute run … | head -1` ends with its summary, without a traceback, and with 0."""
    folder = module(tmp_path, LOOP.replace(", flush=True", ""))  # makes the flush at the end fail
    with buffered(folder, "--for", "300ms") as child:
        assert child.stdout is not None
        child.stdout.close()
        _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, said
    assert "received" in said.splitlines()[-1]


def test_a_failure_in_a_cycle_of_references_is_counted(tmp_path: Path) -> None:
    """A failed Deferred in a reference cycle is logged and counted in the summary."""
    source = (
        HEAD
        + """
class Keeper: pass

@app.on_startup
def drop():
    keeper = Keeper()
    keeper.itself, keeper.failed = keeper, fail(KeyError("dropped"))
"""
    )
    done = zroute("run", "quotes", "--for", "10ms", cwd=module(tmp_path, source))
    assert "KeyError: 'dropped'" in done.stderr
    assert "1 unhandled failures in Deferreds" in done.stderr


def test_a_missing_endpoint_is_5_in_a_script_too(tmp_path: Path) -> None:
    """app.run() logs the same single line as `zroute run`, and returns 5."""
    source = "from zroute import App\napp = App(pub='tcp://127.0.0.1:*')\napp.subscribe('a')(print)\napp.run()\n"
    module(tmp_path, source)
    with Child(str(tmp_path / "quotes.py")) as child:
        assert child.end(None) == 5
        assert len(child.err) == 1
        assert "no endpoint to subscribe to" in child.err[0]


def test_an_endpoint_that_fails_closes_what_was_open(tmp_path: Path) -> None:
    """If the second app can't bind, the first one stops with its on_shutdown, and the code is 5."""
    source = """
from zroute import App
one = App(pub="tcp://127.0.0.1:*")
one.publisher("a")
one.on_shutdown(lambda: print("closed", flush=True))
two = App(pub="ipc:///no/such/folder/socket")
two.publisher("a")
"""
    done = zroute("run", "quotes:one", "quotes:two", cwd=module(tmp_path, source))
    assert done.returncode == 5
    assert done.stdout == "closed\n"


@pytest.mark.parametrize(
    ("second", "answer"),
    [
        ("app.run(seconds=0.01)", "the reactor has already run"),
        ("App().run(seconds=0.01)", "the reactor has already run"),
    ],
)
def test_a_second_run_says_that_there_is_one_reactor(tmp_path: Path, second: str, answer: str) -> None:
    """The error for a second run says what to do instead."""
    program = HEAD + f"app.subscribe('a')(print)\napp.run(seconds=0.01, log_level='error')\n{second}\n"
    with Child("-c", program) as child:
        assert child.end(None) == 1
        assert answer in child.err[-1]


def test_run_inside_a_running_reactor_is_refused(tmp_path: Path) -> None:
    """app.run() in a running reactor names app.service, and starts nothing."""
    program = (
        HEAD
        + """
from twisted.internet import reactor
def late():
    try:
        app.run()
    except Exception as error:
        print(error)
    reactor.stop()
reactor.callWhenRunning(late)
reactor.run()
"""
    )
    with Child("-c", program) as child:
        assert child.end(None) == 0
        assert "app.service(reactor)" in child.out[-1]


# The state of the process that a run changes, and each way in which a run is refused.
STATE = """
import asyncio, logging, signal, sys
import zroute.runtime.runner

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    reactor = sys.modules.get("twisted.internet.reactor")
    watched = reactor and (reactor.seconds, [*reactor._eventTriggers["startup"].after], reactor.getDelayedCalls())
    app_is = app._plan, app._live.run, app._live.emit
    return handlers, reactor, watched, list(logging.root.handlers), zroute.runtime.runner._program, app_is

def refused(call):
    before = state()
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error, "| unchanged:", state() == before, flush=True)

app.subscribe("a")(print)
"""

REFUSALS = {
    "an option": ("refused(lambda: app.run(seconds='2s'))", "seconds is '2s'"),
    "a log level": ("refused(lambda: app.run(log_level='loud'))", "log_level is 'loud', but run expects one of debug,"),
    "a log format": ("refused(lambda: app.run(log_format='xml'))", "log_format is 'xml', but run expects one of auto,"),
    "twice": ("refused(lambda: zroute.runtime.runner.run([app, app]))", "give each app once"),
    "no such reactor": ("refused(lambda: app.run(reactor='trio'))", "unknown reactor 'trio'"),
    "uvloop": ("refused(lambda: app.run(reactor='select', uvloop=True))", "uvloop is an asyncio loop"),
    "another reactor": (
        "from twisted.internet import selectreactor; selectreactor.install()\n"
        "refused(lambda: app.run(reactor='asyncio'))",
        "SelectReactor is already installed",
    ),
    "a loop": (
        "async def main(): refused(lambda: app.run(reactor='asyncio'))\nasyncio.run(main())",
        "would block this loop: use `async with app.running():` instead",
    ),
    "an invalid app": ("app.subscribe('b')(lambda x, y: 0)\nrefused(app.run)", "SignatureError"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_run_changes_nothing(refusal: str) -> None:
    """A refused run() leaves no reactor, socket or frozen app, so a correct run then works."""
    program, says = REFUSALS[refusal]
    after = "\napp.run(seconds=0.01, log_level='error')\nprint('ran')\n"
    after = after if refusal != "an invalid app" else ""
    with Child("-c", HEAD + STATE + program + after) as child:
        assert child.end(None) == 0, child.err
        assert says in child.out[0]
        assert child.out[0].endswith("unchanged: True")
        assert child.out[1:] == (["ran"] if after else [])


INSIDE_A_REACTOR = """
from twisted.internet import reactor

def late():
    refused(lambda: app.run(seconds=0.01))
    service = app.service(reactor)
    service.startService()
    refused(lambda: app.run(seconds=0.01))
    service.stopService().addCallback(lambda drained: (print("ran"), reactor.stop()))

reactor.callWhenRunning(late)
reactor.run()
refused(lambda: app.run(seconds=0.01))
"""


def test_a_run_that_a_running_reactor_refuses_changes_nothing() -> None:
    """run() is refused during and after another run of the reactor; app.service(reactor) works."""
    with Child("-c", HEAD + STATE + INSIDE_A_REACTOR) as child:
        assert child.end(None) == 0, child.err
        assert [line.partition(":")[0] for line in child.out] == [
            *["UsageError the reactor is already running"] * 2,
            "ran",
            "UsageError the reactor has already run and can't be restarted",
        ]
        assert all(line.endswith("unchanged: True") for line in child.out if line != "ran")


AFTER_A_REFUSAL_IN_A_NOTEBOOK = """
async def cells():
    refused(lambda: app.run(seconds=1))
    from twisted.internet import asyncioreactor
    asyncioreactor.install(asyncio.get_running_loop())
    from twisted.internet import reactor
    reactor.startRunning(installSignalHandlers=False)
    service = app.service(reactor)
    service.startService()
    await service.started.asFuture(asyncio.get_running_loop())
    await service.stopService().asFuture(asyncio.get_running_loop())
    print("ran")

asyncio.run(cells())
"""


def test_a_notebook_goes_on_after_a_run_that_was_refused() -> None:
    """After a refused run() in a notebook, asyncio's reactor can be installed on its loop."""
    with Child("-c", HEAD + STATE + AFTER_A_REFUSAL_IN_A_NOTEBOOK) as child:
        assert child.end(None) == 0, child.err
        assert child.out[-1] == "ran"


IN_A_THREAD = """
import signal, sys, threading
from zroute import App
app = App()
got = threading.Event()
published = app.publisher("a", int)
app.subscribe("a")(lambda n: got.set())
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
started = threading.Event()
app.on_startup(started.set)
app.on_shutdown(lambda: print("closed", flush=True))
uvloop = sys.argv[1] == "uvloop"
options = {"reactor": None if uvloop else sys.argv[1], "uvloop": uvloop}
running = threading.Thread(target=app.run, kwargs=options)
running.start()
started.wait()
while not got.wait(0.01):
    app.from_thread(published.publish, 1)
print("unchanged", before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), flush=True)
"""

STOPPED_BY_HAND = """
from twisted.internet import reactor
reactor.callFromThread(reactor.stop)
running.join()
print("joined", flush=True)
"""


@pytest.mark.parametrize("reactor", [*REACTORS, "uvloop"])
def test_an_app_runs_in_a_thread_of_another_program(reactor: str) -> None:
    """An app in a thread receives, drains and serves from_thread; signals stay with the main thread."""
    if reactor == "uvloop":
        pytest.importorskip("uvloop")
    with Child("-c", IN_A_THREAD + STOPPED_BY_HAND, reactor) as child:
        assert child.end(None) == 0, child.err
    assert child.out == ["unchanged True", "closed", "joined"]
    assert "stopping: the reactor was stopped" in "\n".join(child.err)
    assert not [line for line in child.err if "Traceback" in line or "CRITICAL" in line]


@pytest.mark.parametrize("last", ["", "raise SystemExit(3)", "signal.pause()"])
def test_an_app_in_a_thread_ends_with_the_main_thread(last: str) -> None:
    """An app in a thread drains when the main thread ends, fails or is interrupted."""
    with Child("-c", IN_A_THREAD + last, "epoll") as child:
        child.line_with("unchanged True")
        code = child.end(signal.SIGINT if "pause" in last else None)
    assert code == {"": 0, "raise SystemExit(3)": 3, "signal.pause()": -signal.SIGINT}[last], child.err
    assert child.out[1:] == ["closed"]
    assert "stopping: the main thread has ended" in "\n".join(child.err)


AFTER_THE_RUN = """
import os, signal, sys
from zroute import App
app = App()
app.publisher("a", int)
app.on_startup(lambda: os.kill(os.getpid(), signal.SIGINT))  # ends the run
if sys.argv[2] == "mine":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: print("mine", number, flush=True))
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
app.run(reactor=sys.argv[1])
print("back", before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), flush=True)
for number in (signal.SIGINT, signal.SIGTERM):
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
@pytest.mark.parametrize(
    ("handlers", "code", "said"),
    [
        ("python's", -signal.SIGTERM, ["interrupted"]),
        ("mine", 0, [f"mine {signal.SIGINT:d}", f"mine {signal.SIGTERM:d}"]),
    ],
)
def test_signals_are_the_programs_own_again_after_a_run(
    reactor: str, handlers: str, code: int, said: list[str]
) -> None:
    """After a run, Ctrl-C reaches the program's own handler."""
    with Child("-c", AFTER_THE_RUN, reactor, handlers) as child:
        assert child.end(None) == code, child.err
    assert child.out == ["back True", *said]
    assert "stopping: SIGINT" in "\n".join(child.err)


INVALID = {
    "seconds='2s'": "seconds is '2s', but run expects a number",
    "seconds=-1": "seconds is -1, but run expects a number",
    "max_messages='2'": "max_messages is '2', but run expects a number",
    "drain_timeout='2s'": "drain_timeout is '2s', but run expects a number",
    "drain_timeout=None": "drain_timeout is None, but run expects a number of seconds that is finite",
    "drain_timeout=float('inf')": "drain_timeout is inf, but run expects a number of seconds that is finite",
    "drain_timeout=float('nan')": "drain_timeout is nan, but run expects a number of seconds that is finite",
    "seconds=float('inf')": "seconds is inf, but run expects a number of seconds that is finite",
    "sub='tcp://127.0.0.1:5555'": "pass addresses to App(sub=…)",
    "sub=('tcp://127.0.0.1:5555',)": "pass addresses to App(sub=…)",
    "pub=['tcp://127.0.0.1:5555']": "pass addresses to App(pub=…)",
    "rep='tcp://127.0.0.1:5555'": "pass addresses to App(rep=…)",
    "req='tcp://127.0.0.1:5555'": "pass addresses to App(req=…)",
    "jobs='tcp://127.0.0.1:5555'": "pass addresses to App(jobs=…)",
    "work='tcp://127.0.0.1:5555'": "pass addresses to App(work=…)",
    "pub=5555": "pub is 5555, but run expects a tuple of Endpoints",
    "reactor='trio'": "unknown reactor 'trio': use one of ",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """Return what app.run() answers to each invalid option, in one program."""
    calls = "".join(f"refused(lambda: app.run({options}))\n" for options in INVALID)
    with Child("-c", HEAD + STATE + calls) as child:
        assert child.end(None) == 0, child.err
    return dict(zip(INVALID, child.out, strict=True))


@pytest.mark.parametrize("options", INVALID)
def test_an_option_that_cannot_be_meant_starts_nothing(answers: dict[str, str], options: str) -> None:
    """app.run() refuses an option with an invalid value."""
    assert INVALID[options] in answers[options]
    assert answers[options].endswith("unchanged: True")


@pytest.mark.parametrize("reactor", ["None", "'asyncio'"])
def test_run_inside_a_running_loop_is_refused(reactor: str) -> None:
    """app.run() inside asyncio.run() is refused, and the error says where to call it."""
    program = f"import asyncio\nasync def main(): app.run(reactor={reactor}, seconds=0.01)\nasyncio.run(main())\n"
    with Child("-c", HEAD + "app.subscribe('a')(print)\n" + program) as child:
        assert child.end(None) == 1
        assert "or call run() outside of asyncio.run()" in child.err[-1]


def test_sys_exit_in_on_shutdown_does_not_leave_sockets_open(tmp_path: Path) -> None:
    """SystemExit in on_shutdown decides the exit code, and the stop continues."""
    source = HEAD + "import sys\n@app.on_shutdown\ndef leave(): sys.exit(9)\n"
    done = zroute("run", "quotes", "--for", "10ms", cwd=module(tmp_path, source))
    assert done.returncode == 9
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("wire", "lines"), [("tracked", 1), ("plain", 0), ("multipart", 0)])
def test_a_tracked_publisher_says_what_others_call_it(tmp_path: Path, wire: str, lines: int) -> None:
    """A tracked publisher logs once the name by which its subscribers log it."""
    address = free_endpoint()
    source = f"from zroute import App\napp = App(name='feed', wire={wire!r}, pub={address!r})\n" + GO
    done = zroute("run", "quotes", "--for", "10ms", cwd=module(tmp_path, source))
    known = rf".* INFO    feed: publishes as feed@{re.escape(socket.gethostname())} {address} \([0-9a-f]{{16}}\)"
    assert f"feed: publishes, bound to {address}" in done.stderr
    assert done.stderr.count("publishes as") == lines
    assert len([line for line in done.stderr.splitlines() if re.fullmatch(known, line)]) == lines


@pytest.mark.parametrize(("duplicates", "named"), [(0, {}), (3, {"duplicate": 3})])
def test_the_last_line_names_duplicates_where_there_are_any(duplicates: int, named: dict[str, int]) -> None:
    """The summary shows the number of duplicates only if there are any."""

    class Stopped:
        plan = App(name="reader").compile()
        ends = parse_ends({"sub": "tcp://127.0.0.1:5555"})

    stats = Stopped.plan.live.stats
    stats.received, stats.joins, stats.duplicate = 10, 1, duplicates
    always = {"received": 10, "handled": 0, "failed": 0, "unrouted": 0, "malformed": 0, "lost": 0}
    assert _counters(Stopped) == always | named


@pytest.mark.parametrize("named", [{}, {"publish_errors": 3}, {"publish_skipped": 2}, {"snapshot_errors": 4}])
def test_the_last_line_of_a_subscriber_names_what_it_could_not_publish(named: dict[str, int]) -> None:
    """Results for a bridge count there, where the app itself has no endpoint to publish to."""

    class Stopped:
        plan = App(name="inside").compile()
        ends = parse_ends({"sub": "tcp://127.0.0.1:5555"})

    for name, count in named.items():
        setattr(Stopped.plan.live.stats, name, count)
    received = ("received", "handled", "failed", "unrouted", "malformed", "lost")
    assert _counters(Stopped) == dict.fromkeys(received, 0) | named
