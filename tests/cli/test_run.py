"""`zroute run` with real processes, signals and exit codes."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.commands import zroute
from tests.interpreters import run
from tests.support import Child, free_endpoint, free_port
from zroute import App
from zroute.cli import main
from zroute.endpoints import SIDES, Ends, Side, parse_ends

LOOP = """
from zroute import App
app = App()

@app.subscribe("tick")
def tick(n: int):
    print("tick", n, flush=True)

numbers = iter(range(10**9))

@app.publisher("tick", every=0.02)
def count() -> int:
    return next(numbers)

@app.on_shutdown
def bye():
    print("bye", flush=True)
"""


def module(folder: Path, source: str, name: str = "quotes") -> Path:
    """Write a module and return its folder."""
    new = folder / f"{name}.new"
    new.write_text(source)
    new.replace(folder / f"{name}.py")  # a program that watches the file never finds half of it
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT and SIGTERM run on_shutdown, log a summary and end with 0."""
    with Child("-m", "zroute", "run", "quotes", "--app-dir", str(module(tmp_path, LOOP))) as child:
        child.line_with("tick 1")
        assert child.end(number) == 0
        assert child.out[-1] == "bye"
        assert f"stopping: {number.name}" in "\n".join(child.err)
        assert "received" in child.err[-1]


def test_for_stops_after_a_time(tmp_path: Path) -> None:
    """--for 300ms stops the app after that time, with a summary and exit 0."""
    done = zroute("run", "quotes", "--for", "300ms", cwd=module(tmp_path, LOOP))
    assert done.returncode == 0
    assert "stopping: 0.3 s elapsed" in done.stderr
    assert "has no endpoints, so the app receives only its own messages" in done.stderr


def test_max_messages_stops_after_exactly_so_many(tmp_path: Path) -> None:
    """--max-messages 5 handles five messages, not six."""
    done = zroute("run", "quotes", "--max-messages", "5", cwd=module(tmp_path, LOOP))
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith("tick")] == [f"tick {n}" for n in range(5)]
    assert "received 5, handled 5" in done.stderr


BLOCKED = """
from twisted.internet.defer import Deferred
from zroute import App
app = App()

@app.subscribe("go")
def never_ends(body):
    print("started", flush=True)
    return Deferred()

@app.publisher("go", every=0.05)
def go() -> int:
    return 1
"""


def test_an_unfinished_handler_is_named_and_gives_75(tmp_path: Path) -> None:
    """After the drain timeout, the log names unfinished handlers and their numbers."""
    folder = module(tmp_path, BLOCKED)
    with Child("-m", "zroute", "run", "quotes", "--app-dir", str(folder), "--drain-timeout", "100ms") as child:
        child.line_with("started")
        assert child.end(signal.SIGTERM) == 75
        assert "never_ends(): " in "\n".join(child.err)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """A second Ctrl-C ends the process at once with 130, despite unfinished handlers."""
    folder = module(tmp_path, BLOCKED)
    with Child("-m", "zroute", "run", "quotes", "--app-dir", str(folder), "--drain-timeout", "100s") as child:
        child.line_with("started")
        child.process.send_signal(signal.SIGINT)
        child.line_with("stopping: SIGINT", stream="err")
        assert child.end(signal.SIGINT) == 130


def test_several_apps_and_a_factory(tmp_path: Path) -> None:
    """Two apps run in one process and connect over TCP; an app may come from a function."""
    endpoint = free_endpoint()
    module(
        tmp_path, f"from zroute import App\nfeed = App(pub={endpoint!r})\nfeed.publisher('n.a', every=0.02)(lambda: 1)"
    )
    source = f"""
from zroute import App
def create_app():
    app = App(sub={endpoint!r})
    app.subscribe("n.*")(lambda body: print("got", body, flush=True))
    return app
"""
    module(tmp_path, source, "reader")
    with Child("-m", "zroute", "run", "quotes:feed", "reader", "--app-dir", str(tmp_path)) as child:
        child.line_with("got 1")
        assert child.end() == 0
    done = zroute("run", "reader:create_app", "--factory", "--for", "50ms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


EMPTY = "from zroute import App\napp = App(sub='tcp://127.0.0.1:1')\napp.subscribe('a')(print)\n"


def test_a_flag_wins_over_the_environment_and_that_over_the_app(tmp_path: Path) -> None:
    """--sub replaces the endpoint of the app, and the log shows the new one."""
    module(tmp_path, EMPTY)
    both = ("run", "quotes", "--for", "10ms")
    assert "connects to tcp://127.0.0.1:1\n" in zroute(*both, cwd=tmp_path).stderr
    two = zroute(*both, cwd=tmp_path, ZROUTE_SUB="tcp://127.0.0.1:2, tcp://127.0.0.1:3")
    assert "tcp://127.0.0.1:2\n" in two.stderr
    assert "tcp://127.0.0.1:3\n" in two.stderr
    flag = zroute(*both, "--sub", "tcp://127.0.0.1:4", cwd=tmp_path, ZROUTE_SUB="tcp://127.0.0.1:2")
    assert "tcp://127.0.0.1:4\n" in flag.stderr
    assert "tcp://127.0.0.1:2\n" not in flag.stderr


UNKNOWN = "unknown environment variables, which have no effect on zroute: "


@pytest.mark.parametrize("words", [(), ("--reload",)], ids=["run", "reload"])
def test_unknown_variables_are_reported_once(tmp_path: Path, words: tuple[str, ...]) -> None:
    """One warning names them and suggests similar names, but shows no value; known variables are not named."""
    module(tmp_path, EMPTY)
    env = {"ZROUTE_KEY": "a secret", "zroute_sub": "b", "ZROUTE_COLOUR_OF_LOGS": "c", "ZROUTE_LOG_LEVEL": "info"}
    done = zroute("run", "quotes", *words, cwd=tmp_path, ZROUTE_FOR="10ms", **env)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if UNKNOWN in line]
    assert " WARNING " in line
    assert line.endswith(
        f"{UNKNOWN}ZROUTE_COLOUR_OF_LOGS; ZROUTE_KEY: did you mean 'ZROUTE_KEYS'?; "
        "zroute_sub: did you mean 'ZROUTE_SUB'?"
    )
    assert "a secret" not in done.stderr


def test_no_variable_that_zroute_reads_is_unknown() -> None:
    """The variables of all commands are among those of run, where the warning looks for them."""
    context = click.Context(main)
    read = {
        str(parameter.envvar): name
        for name in main.list_commands(context)
        for command in _with_subcommands(main.get_command(context, name))
        for parameter in command.params
        if parameter.envvar
    }
    run = main.get_command(context, "run")
    assert run is not None
    assert {name: by for name, by in read.items() if name not in {parameter.envvar for parameter in run.params}} == {}
    assert {"ZROUTE_KEYS", "ZROUTE_PEERS", "ZROUTE_SUB"} <= set(read)


def _with_subcommands(command: click.Command | None) -> list[click.Command]:
    """Return a command and its subcommands."""
    assert command is not None
    return [command, *getattr(command, "commands", {}).values()]


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_a_flag_wins_over_the_variable_of_each_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: Side
) -> None:
    """Each side has a flag and a variable; other sides keep the endpoints of the app."""
    own = {each.name: f"tcp://127.0.0.1:{port}" for port, each in enumerate(SIDES, 1)}
    folder = module(tmp_path, f"from zroute import App\napp = App(**{own})\n", f"all_sides_{side.name}")
    runs: list[Ends] = []

    def run(apps: list[App], **options: Any) -> int:
        runs.append(apps[0].endpoints(**{each.name: options[each.name] for each in SIDES}))
        return 0

    monkeypatch.setattr("zroute.runtime.runner.run", run)
    for flags, variable in (((), ""), ((), "ipc://x, bind:ipc://y"), ((side.flag, "connect:ipc://z"), "ipc://x")):
        command = ["run", f"all_sides_{side.name}", "--app-dir", str(folder), *flags]
        done = CliRunner().invoke(main, command, env={side.variable: variable}, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    expected = (own[side.name], ["ipc://x", "bind:ipc://y"], "connect:ipc://z")
    assert runs == [parse_ends({**own, side.name: texts}) for texts in expected]


def test_logs_as_json_can_be_parsed(tmp_path: Path) -> None:
    """Each line is an object with time, level, logger and message, and perhaps a traceback."""
    source = LOOP + "\n@app.subscribe('tick')\ndef fails(n: int):\n    raise ValueError('no')\n"
    done = zroute("run", "quotes", "--max-messages", "1", "--log-format", "json", cwd=module(tmp_path, source))
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    failed = next(line for line in lines if "fails()" in line["message"])
    assert failed["level"] == "error"
    assert "raise ValueError('no')" in failed["error"]


def test_the_log_shows_what_happens_to_connections(tmp_path: Path) -> None:
    """--log-level debug logs connecting and disconnecting peers, with address and event."""
    endpoint = free_endpoint()
    source = LOOP.replace("App()", f"App(sub='{endpoint}', pub='tcp://127.0.0.1:*')")
    options = ("--app-dir", str(module(tmp_path, source)), "--log-level", "debug")
    with Child("-m", "zroute", "run", "quotes", *options) as child:
        child.line_with(f"SubConnection {endpoint}: connect_retried, next attempt in", stream="err")
        with Child("-m", "zroute", "pub", endpoint, "tick", "5", "--wait", "30s") as publisher:
            child.line_with(f"SubConnection {endpoint}: handshake_succeeded", stream="err")
            assert publisher.end(None) == 0
        child.line_with(f"SubConnection {endpoint}: disconnected", stream="err")
        assert any("XPubConnection tcp://127.0.0.1:" in line and "listening" in line for line in child.err)
        assert child.end(signal.SIGTERM) == 0


def test_the_log_level_is_kept(tmp_path: Path) -> None:
    """With --log-level error, a run without errors logs nothing."""
    done = zroute("run", "quotes", "--for", "50ms", "--log-level", "error", cwd=module(tmp_path, LOOP))
    assert done.stderr == ""


@pytest.mark.parametrize("reactor", ["epoll", "poll", "select", "asyncio"])
def test_every_reactor_runs_an_app(tmp_path: Path, reactor: str) -> None:
    """--reactor chooses the reactor; with asyncio's, coroutines may use asyncio."""
    pause = "await asyncio.sleep(0)" if reactor == "asyncio" else "pass"
    source = f"""
import asyncio
from zroute import App
app = App()

@app.subscribe("tick")
async def tick(n: int):
    {pause}
    from twisted.internet import reactor
    print("on", type(reactor).__module__, flush=True)

@app.publisher("tick", every=0.02)
async def count() -> int:
    return 1
"""
    done = zroute("run", "quotes", "--max-messages", "2", "--reactor", reactor, cwd=module(tmp_path, source))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"on twisted.internet.{reactor}reactor"] * 2


# -- errors -------------------------------------------------------------------------------------------------


def test_a_wrong_name_is_answered_with_what_is_there(tmp_path: Path) -> None:
    """If a module lacks the named app, one line lists its App objects, with exit 3."""
    module(tmp_path, EMPTY + "other = App()\nnumber = 3\n")
    done = zroute("run", "quotes:ap", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "has no 'ap'" in done.stderr
    assert "app, other" in done.stderr
    assert "'quotes'" in done.stderr
    assert "is a int, not a zroute App" in zroute("run", "quotes:number", cwd=tmp_path).stderr


def test_a_missing_module_is_answered_with_where_it_was_looked_for(tmp_path: Path) -> None:
    """If a module does not exist, the error names the folder and its modules."""
    done = zroute("run", "quote", cwd=module(tmp_path, EMPTY))
    assert done.returncode == 3
    assert f"no module 'quote' in {tmp_path}" in done.stderr
    assert "quotes" in done.stderr
    missing = zroute("run", "quotes", "--app-dir", "nowhere", cwd=tmp_path)
    assert (missing.returncode, "'nowhere' is not a directory" in missing.stderr) == (3, True)


def test_a_module_that_fails_shows_my_frames_only(tmp_path: Path) -> None:
    """The traceback of a failing import has the user's frames only."""
    module(tmp_path, "import helper\n")
    module(tmp_path, "def load():\n    return 1 / 0\n\nload()\n", "helper")
    done = zroute("run", "quotes", cwd=tmp_path)
    assert done.returncode == 3
    assert "ZeroDivisionError" in done.stderr
    assert "return 1 / 0" in done.stderr
    assert "importlib" not in done.stderr
    assert "zroute/cli" not in done.stderr
    missing = zroute("run", "other", cwd=module(tmp_path, "import not_there\n", "other"))
    assert "No module named 'not_there'" in missing.stderr


@pytest.mark.parametrize(
    ("source", "code", "text"),
    [
        ("app = App()\n@app.subscribe('new*')\ndef f(x): ...", 4, "quotes.py:3"),
        ("app = App()\n@app.subscribe('news')\ndef f(x, y): ...", 4, "'x' and 'y'"),
        ("app = App()\n@app.subscribe('news')\ndef f(x: complex): ...", 4, "'x' of f()"),
        ("app = App(sub='5555')", 5, "has no transport"),
        ("app = App(loop=False)", 5, "no endpoints"),
        ("app = App(pub='tcp://127.0.0.1:*')\n@app.subscribe('news')\ndef f(x): ...", 5, "write App(sub="),
        ("app = App(sub='tcp://127.0.0.1:1')\napp.publisher('news')", 5, "write App(pub="),
        (
            "app = App(pub='tcp://192.0.2.1:5555', insecure=True)",
            5,
            "quotes.py:2: can't bind tcp://192.0.2.1:5555: this",
        ),
        ("app = App(pub='ipc:///no/such/folder/s')", 5, "the directory does not exist"),
        ("app = App()\n@app.on_startup\ndef f(): raise OSError('no database')", 1, "no database"),
    ],
)
def test_set_up_errors_have_their_exit_codes(tmp_path: Path, source: str, code: int, text: str) -> None:
    """Invalid routes give 4, endpoints 5, a failing start 1; each error names a remedy."""
    done = zroute("run", "quotes", cwd=module(tmp_path, f"from zroute import App\n{source}\n"))
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    if code in (4, 5):
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line_and_5(tmp_path: Path) -> None:
    """A second instance on the same port reports the conflict and ends."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        source = f"from zroute import App\napp = App(pub='tcp://127.0.0.1:{port}')\napp.publisher('a')\n"
        done = zroute("run", "quotes", cwd=module(tmp_path, source))
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "this address is in use" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--sub", "5555"), ("--for", "soon"), ("--max-messages", "0"), ("--reactor", "libev"), ("--nonsense",)],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """An invalid value of an option gives 2 and the name of the option."""
    done = zroute("run", "quotes", *arguments, cwd=module(tmp_path, EMPTY))
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_endpoints_of_several_apps_can_not_be_told_by_flags(tmp_path: Path) -> None:
    """--sub with two apps is a usage error."""
    module(tmp_path, EMPTY, "others")
    done = zroute("run", "quotes", "others", "--sub", "tcp://127.0.0.1:1", cwd=module(tmp_path, EMPTY))
    assert (done.returncode, "can't be used with several apps" in done.stderr) == (2, True)


def test_a_reactor_that_is_installed_already_is_named(tmp_path: Path) -> None:
    """If another reactor is already installed, the error says what to do."""
    program = f"""
from twisted.internet import selectreactor
selectreactor.install()
import sys
sys.path.insert(0, {str(module(tmp_path, EMPTY))!r})
from zroute.cli import main
main(["run", "quotes", "--reactor", "poll"])
"""
    done = run("-c", program)
    assert (done.returncode, "SelectReactor is already installed" in done.stderr) == (2, True)


def test_open_endpoints_and_catch_alls_are_warned_about(tmp_path: Path) -> None:
    """A bind to all interfaces is refused, or warned about; so is a pattern that matches all topics."""
    source = "from zroute import App\napp = App(pub='tcp://*:*', sub='tcp://127.0.0.1:1')\napp.subscribe('*.urgent')(print)\n"
    refused = zroute("run", "quotes", "--for", "10ms", cwd=module(tmp_path, source))
    assert (refused.returncode, "is open to the network" in refused.stderr) == (5, True)
    done = zroute("run", "quotes", "--for", "10ms", "--insecure", cwd=module(tmp_path, source))
    assert "is reachable from the network, without authentication" in done.stderr
    assert "receives all messages" in done.stderr


def test_unhandled_failures_of_my_deferreds_are_logged_and_counted(tmp_path: Path) -> None:
    """An unhandled failure of a Deferred is logged, and counted in the summary."""
    source = (
        LOOP
        + """
import gc
from twisted.internet.defer import fail

@app.on_startup
def drop():
    fail(KeyError("dropped"))
    gc.collect()
"""
    )
    done = zroute("run", "quotes", "--for", "100ms", cwd=module(tmp_path, source))
    assert "KeyError: 'dropped'" in done.stderr
    assert "1 unhandled failures in Deferreds" in done.stderr


def test_app_run_is_the_same_in_a_script(tmp_path: Path) -> None:
    """A script that calls app.run() ends at a signal with exit 0."""
    module(tmp_path, LOOP + "\nif __name__ == '__main__':\n    app.run()\n")
    with Child(str(tmp_path / "quotes.py")) as child:
        child.line_with("tick 1")
        assert child.end() == 0
        assert child.out[-1] == "bye"


def test_an_app_is_named_once() -> None:
    """Naming an app twice is refused before it starts."""
    done = zroute("run", "quotes", "quotes")
    assert (done.returncode, "is given twice" in done.stderr) == (2, True)


def test_a_factory_that_returns_nothing_and_an_app_with_nothing_in_it_are_told(tmp_path: Path) -> None:
    """A factory without a return, and an app without routes, are reported as such."""
    module(tmp_path, "def create_app():\n    pass\n")
    assert "must return an App" in zroute("run", "quotes", cwd=tmp_path).stderr
    module(tmp_path, "from zroute import App\napp = App()\n", "empty")
    assert "app.include(routes) missing" in zroute("run", "empty", "--for", "10ms", cwd=tmp_path).stderr


def test_a_start_up_that_fails_shows_my_traceback_and_no_other(tmp_path: Path) -> None:
    """After a failing start, the last traceback is that of the user's function."""
    module(tmp_path, "from zroute import App\napp = App()\n@app.on_startup\ndef f(): raise OSError('no database')\n")
    done = zroute("run", "quotes", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "AttributeError" not in done.stderr


def test_publishing_from_a_thread_is_refused_before_zeromq_sees_it(tmp_path: Path) -> None:
    """Publishing from another thread raises an error with a remedy, and does not abort."""
    source = (
        LOOP
        + """
import threading

@app.on_startup
def elsewhere():
    def work():
        try:
            app.publish("tick", 1)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""
    )
    done = zroute("run", "quotes", "--for", "50ms", cwd=module(tmp_path, source))
    assert "WrongThreadError cannot publish to 'tick' from this thread" in done.stdout
    assert "use app.from_thread(publication.publish, message) or app.from_thread(app.publish, topic" in done.stdout
