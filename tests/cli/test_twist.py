"""The plugin of twist and twistd: ``twist zroute module:app``, in real processes of both programs."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
from twisted.python import usage

from tests.support import ROOT, Child
from zroute.cli.twist import Options
from zroute.endpoints import SIDES, Endpoint

TWIST = ("-m", "twisted")
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "--pidfile=", "-n")

QUOTES = """
import logging
from zroute import App

app = App(name="quotes")
other = App(name="other")
ending = App(name="ending")
broken = App(name="broken")
taken = App(pub="tcp://192.0.2.1:5555", insecure=True, name="taken")

@app.publisher("numbers", every=0.05)
def number() -> int:
    return 1

@app.subscribe("numbers")
def on_number(number: int) -> None:
    raise ValueError("no numbers\\x1b[31m")

@ending.publisher("numbers", every=0.01)
def end() -> int:
    ending.stop(7)
    return 1

@broken.on_startup
def fail() -> None:
    raise RuntimeError("no database")

def create() -> App:
    created = App(name="created")

    @created.every(0.01)
    def tick() -> None:
        print("created: ticks", flush=True)

    return created

waiting = App(reactor="asyncio", name="waiting")
deferring = App(reactor="twisted", name="deferring")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of several apps."""
    (tmp_path / "quotes.py").write_text(QUOTES)
    return tmp_path


def events(lines: list[str]) -> list[dict[str, Any]]:
    """Return the events of twist's JSON log."""
    return [json.loads(line.lstrip("\x1e")) for line in lines]  # each begins with a record separator


def test_twist_runs_an_app_and_logs_its_lines_with_levels(folder: Path) -> None:
    """Start lines, errors and counters are events of Twisted's log, with level and namespace, and escaped."""
    with Child(*TWIST, "--log-format", "json", "zroute", "quotes:app", cwd=folder) as program:
        program.line_with("no numbers")
        program.end(signal.SIGTERM)
    ours = [event for event in events(program.out) if event["log_namespace"] == "zroute"]
    told = [(event["log_level"]["name"], event["text"].partition("\n")[0]) for event in ours]
    assert ("info", "quotes: routes 1, publications 1, timers and generators 1") in told
    failed = next(text for level, text in told if level == "error")
    assert failed.startswith("on_number() at ")
    assert "ValueError: no numbers\\u001b[31m" in failed
    assert told[-2] == ("info", "quotes: stopping")
    assert ours[-1]["app"] == "quotes"
    assert ours[-1]["failed"] == ours[-1]["received"] > 0
    assert told[-1][1].startswith("quotes: received ")


def test_twistd_runs_several_apps(folder: Path) -> None:
    """All named apps run in one process, and log in Twisted's format."""
    with Child(*TWISTD, "zroute", "quotes:app", "quotes:other", cwd=folder) as program:
        program.line_with("[zroute#info] quotes: routes 1")
        program.line_with("[zroute#warn] other: nothing is registered")
        program.line_with("[zroute#error] on_number() at ")
        program.end(signal.SIGINT)
    assert any("[zroute#info] other: received 0" in line for line in program.out), program.out


@pytest.mark.parametrize("program", [TWIST, TWISTD], ids=["twist", "twistd"])
@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("ending", 7, "stopping: stop(7) at "),
        ("broken", 1, "broken did not start: no database"),
        ("taken", 5, "quotes.py:9: can't bind tcp://192.0.2.1:5555"),
    ],
)
def test_an_app_that_ends_ends_the_process_with_its_code(
    folder: Path, program: tuple[str, ...], name: str, code: int, line: str
) -> None:
    """An app that stops itself or can't start ends the process, also beside others; the log has the reason."""
    with Child(*program, "zroute", "quotes:other", f"quotes:{name}", cwd=folder) as child:
        assert child.end(None) == code, (child.out, child.err)
        assert sum(line in each for each in child.out) == 1
        assert not any("EndpointError" in each for each in child.out + child.err)


@pytest.mark.parametrize("program", [TWIST, TWISTD], ids=["twist", "twistd"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nope"], "zroute: no module 'nope' in "),
        (["quotes:nope"], "zroute: module 'quotes' ("),
        (["--app-dir", "nowhere", "quotes"], "zroute: --app-dir 'nowhere' is not a directory"),
    ],
)
def test_a_bad_name_is_one_line(folder: Path, program: tuple[str, ...], arguments: list[str], line: str) -> None:
    """An app that can't be found ends the process with code 3 and one line."""
    with Child(*program, "zroute", *arguments, cwd=folder) as child:
        assert child.end(None) == 3
        (told,) = child.err
        assert told.startswith(line)


@pytest.mark.parametrize("program", [TWIST, TWISTD], ids=["twist", "twistd"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--reactor", "poll", "zroute", "quotes:other", "quotes:waiting"],
            "needs reactor='asyncio', but the given reactor is not asyncio's: "
            "write 'twist --reactor asyncio zroute quotes:other quotes:waiting'; twistd has the same option",
        ),
        (
            ["--reactor", "asyncio", "zroute", "quotes:deferring"],
            "needs reactor='twisted', but the given reactor is asyncio's: "
            "remove --reactor asyncio, as in 'twist zroute quotes:deferring'",
        ),
        (["zroute", "quotes:waiting", "quotes:deferring"], "run these apps in separate processes"),
    ],
)
def test_the_error_for_a_reactor_names_the_option_of_the_program(
    folder: Path, program: tuple[str, ...], arguments: list[str], says: str
) -> None:
    """An app that needs another reactor ends the process with code 2, and with the command that works."""
    with Child(*program, *arguments, cwd=folder) as child:
        assert child.end(None) == 2, (child.out, child.err)
        (told,) = child.err
        assert told.startswith("zroute: <App '")
        assert told.endswith(says)


def test_handlers_of_the_program_get_the_lines(folder: Path) -> None:
    """If the app's module configures logging, Twisted's log has no line of zroute."""
    source = folder / "quotes.py"
    source.write_text(QUOTES + "\nlogging.basicConfig(level=logging.INFO, format='own %(message)s')\n")
    with Child(*TWISTD, "zroute", "quotes:ending", cwd=folder) as program:
        program.end(None)
    lines = program.out + program.err
    assert any("own ending: routes 0" in line for line in lines), lines
    assert not any("[zroute#" in line for line in lines)


def test_a_factory_can_make_the_app(folder: Path) -> None:
    """--factory calls the named function."""
    with Child(*TWISTD, "zroute", "--factory", "quotes:create", cwd=folder) as program:
        # A line of the running reactor: Python's own handler of the signal raises KeyboardInterrupt before it runs, and
        # Twisted's log, which may be writing a line, catches that.
        program.line_with("created: ticks")
        assert program.end(signal.SIGINT) == -signal.SIGINT  # twistd ends by the signal that stopped it


NAMES = [side.name for side in SIDES]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no app is named"),
        (["quotes", "quotes"], "quotes is given twice"),
        (["--sub", "tcp://127.0.0.1:1", "a", "b"], "can't be used with several apps"),
        *((["--" + side, "nonsense", "a"], f"--{side}: endpoint 'nonsense' has no transport") for side in NAMES),
        (["--drain-timeout", "soon", "a"], "'soon' is not a duration"),
        (["quotes", "--factory"], "--factory comes after an app"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: list[str], text: str) -> None:
    """Twisted's programs show a usage error with their help."""
    with pytest.raises(usage.UsageError, match=text):
        Options().parseOptions(arguments)


def test_options_are_those_of_zroute_run() -> None:
    """Durations and endpoints are written as for ``zroute run``."""
    options = Options()
    given = [text for side in NAMES for text in (f"--{side}", "ipc://x", f"--{side}", "bind:ipc://y")]
    options.parseOptions(["--drain-timeout", "500ms", *given, "a"])
    assert options["drain-timeout"] == 0.5
    assert options["ends"] == {
        side.name: (Endpoint("ipc://x", side.binds), Endpoint("ipc://y", bind=True)) for side in SIDES
    }
    assert options["apps"] == ("a",)


def test_the_packages_have_the_plugin() -> None:
    """The wheel and the source package contain the plugin, in Twisted's folder without an ``__init__``."""
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    plugin = "twisted/plugins/zroute_plugin.py"
    assert plugin in targets["wheel"]["only-include"]
    assert f"/{plugin}" in targets["sdist"]["include"]
    assert sorted(path.name for path in (ROOT / "twisted").rglob("*.py")) == ["zroute_plugin.py"]
