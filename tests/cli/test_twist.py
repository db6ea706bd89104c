"""The plugin of twist and twistd: ``twist zroute module:app``, in real processes of both programs."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
from twisted.python import usage

from tests.keyed import Keys
from tests.support import ROOT, Child, free_endpoint, free_port
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
feed = App(name="feed")
feed.publisher("numbers", every=0.05)(lambda: 1)

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
    told = [(level, text) for level, text in told if "more lines like these were not shown" not in text]
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
        (["quotes", "--keys", "k"], "--keys comes after an app"),
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
        **{side.name: (Endpoint("ipc://x", side.binds), Endpoint("ipc://y", bind=True)) for side in SIDES},
        "nats": None,
        "nats_creds": None,
        "keys": None,
        "peers": None,
        "insecure": None,
    }
    assert options["apps"] == ("a",)


def test_keys_replace_those_of_all_apps() -> None:
    """The options for keys reach the apps as for ``zroute run``, also if there are several apps."""
    options = Options()
    options.parseOptions(["--keys", "k/desk.key_secret", "--peers", "anyone", "--insecure", "a", "b"])
    given = {name: value for name, value in options["ends"].items() if value is not None}
    assert given == {"keys": "k/desk.key_secret", "peers": "anyone", "insecure": True}
    options.parseOptions(["--nats", "nats://a,nats://b:1", "--nats-creds", "desk.creds", "a", "b"])
    assert (options["ends"]["nats"], options["ends"]["nats_creds"]) == ("nats://a,nats://b:1", "desk.creds")


@pytest.mark.parametrize("program", [TWIST, TWISTD], ids=["twist", "twistd"])
def test_apps_in_programs_of_twisted_use_keys(folder: Path, tmp_path: Path, program: tuple[str, ...]) -> None:
    """A publisher with --keys serves a reader with a known key, and refuses one with an unknown key."""
    keys, address = Keys(tmp_path / "made"), free_endpoint()
    keys.introduce("feed", "desk")
    keys.authorize("eve", "feed")
    given = "--keys", str(keys.secret("feed")), "--pub", address
    tail = "-m", "zroute", "tail", f"feed@{address}", "--keys"
    with Child(*program, "zroute", *given, "quotes:feed", cwd=folder) as feed:
        with Child(*tail, str(keys.secret("eve"))) as eve, Child(*tail, str(keys.secret("desk")), "-n", "1") as desk:
            eve.line_with("the peer refuses the key of eve", stream="err")
            assert desk.end(None) == 0
            assert eve.out == []
        feed.line_with("feed: refused a connection from 127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--pub", "tcp://0.0.0.0:{port}"], 5, "is open to the network"),
        (["--pub", "tcp://127.0.0.1:{port}", "--keys", "none.key_secret"], 5, "none.key_secret"),
        (["--peers", "anyone"], 5, "peers='anyone' has no effect without keys"),
    ],
)
def test_keys_that_do_not_fit_end_the_process_with_one_line(
    folder: Path, arguments: list[str], code: int, line: str
) -> None:
    """An open address, a missing key file and peers without keys are one line each."""
    given = [each.format(port=free_port()) for each in arguments]
    with Child(*TWIST, "zroute", *given, "quotes:other", cwd=folder) as child:
        assert child.end(None) == code, (child.out, child.err)
        assert sum(line in each for each in child.out + child.err) == 1, (child.out, child.err)


def test_insecure_lets_an_app_bind_an_open_address(folder: Path) -> None:
    """With --insecure, an app without keys binds an address that other hosts can reach."""
    port = free_port()
    given = "--insecure", "--pub", f"tcp://0.0.0.0:{port}"
    with (
        Child(*TWIST, "zroute", *given, "quotes:feed", cwd=folder),
        Child("-m", "zroute", "tail", f"tcp://127.0.0.1:{port}", "-n", "1") as tail,
    ):
        assert tail.end(None) == 0


def test_the_packages_have_the_plugin() -> None:
    """The wheel and the source package contain the plugin, in Twisted's folder without an ``__init__``."""
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    plugin = "twisted/plugins/zroute_plugin.py"
    assert plugin in targets["wheel"]["only-include"]
    assert f"/{plugin}" in targets["sdist"]["include"]
    assert sorted(path.name for path in (ROOT / "twisted").rglob("*.py")) == ["zroute_plugin.py"]
