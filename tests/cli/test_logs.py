"""The format of the log, and that no line appears twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.cli.terminal import on_terminal
from tests.cli.test_run import EMPTY, LOOP, module
from tests.commands import zroute
from tests.interpreters import run

BASIC = "import logging\nlogging.getLogger('mine').warning('early')\nlogging.basicConfig()\n" + EMPTY


def test_a_terminal_gets_colours_unless_i_do_not_want_them(tmp_path: Path) -> None:
    """Only a terminal gets colours; NO_COLOR and --log-format text turn them off."""
    module(tmp_path, LOOP)
    brief = ("run", "quotes", "--for", "50ms")
    coloured, code = on_terminal(*brief, cwd=tmp_path)
    assert code == 0
    assert "\x1b[" in coloured
    assert "\x1b[" not in on_terminal(*brief, cwd=tmp_path, NO_COLOR="1")[0]
    assert "\x1b[" not in on_terminal(*brief, "--log-format", "text", cwd=tmp_path)[0]
    assert "\x1b[" not in zroute(*brief, cwd=tmp_path).stderr


FAILING = """
from zroute import App
app = App(name="quotes")

@app.subscribe("a")
def fail(body: int):
    raise ValueError("refused: failed 7")

@app.publisher("a", every=0.05)
def beat() -> int:
    return 1
"""


def test_colours_mark_levels_apps_and_failures_only(tmp_path: Path) -> None:
    """Colours mark time, level, app and failures; FORCE_COLOR turns them on in a pipe."""
    brief = ("run", "quotes", "--max-messages", "1")
    module(tmp_path, FAILING)
    forced = zroute(*brief, cwd=tmp_path, FORCE_COLOR="1").stderr
    last = forced.splitlines()[-1]
    time, level, app, failed = re.findall(r"\x1b\[[\d;]+m(.*?)\x1b\[0m", last)
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time)
    assert (level, app, failed) == ("INFO", "quotes", "failed 1")
    plain = re.sub(r"\x1b\[[\d;]+m", "", last)
    assert plain == f"{time} INFO    quotes: {plain.partition('quotes: ')[2]}"
    assert "handled 0, failed 1, unrouted 0, malformed 0" in plain
    assert "\x1b[" not in zroute(*brief, cwd=tmp_path, FORCE_COLOR="1", NO_COLOR="1").stderr


def test_json_lines_have_counters_and_extras_as_fields(tmp_path: Path) -> None:
    """In JSON, the counters of an app's summary and the extras of a log call are fields."""
    source = FAILING + "import logging\nlogging.getLogger('mine').warning('hi', extra={'user': 7, 'level': 'x'})\n"
    done = zroute("run", "quotes", "--max-messages", "1", "--log-format", "json", cwd=module(tmp_path, source))
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    mine = next(line for line in lines if line["logger"] == "mine")
    assert (mine["user"], mine["level"]) == (7, "warning")
    last = lines[-1]
    assert last["app"] == "quotes"
    assert {name: last[name] for name in ("received", "failed", "lost", "publish_errors")} == {
        "received": 1,
        "failed": 1,
        "lost": 0,
        "publish_errors": 0,
    }


def test_my_own_logging_is_in_the_same_log_from_the_import_on(tmp_path: Path) -> None:
    """Log lines of a module's import have the chosen format, and appear once after basicConfig."""
    done = zroute("run", "quotes", "--for", "10ms", "--log-format", "json", cwd=module(tmp_path, BASIC))
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert messages[0] == "early"
    assert len([message for message in messages if message.startswith("stopping")]) == 1


def test_warnings_of_python_are_lines_of_the_log(tmp_path: Path) -> None:
    """With --log-format json, warnings of Python's warnings module are JSON lines too."""
    source = "import warnings\nwarnings.warn('old')\n" + EMPTY
    done = zroute("run", "quotes", "--for", "10ms", "--log-format", "json", cwd=module(tmp_path, source))
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert any("old" in message for message in messages)


def test_a_script_with_its_own_logging_keeps_it(tmp_path: Path) -> None:
    """In a script that called basicConfig, app.run() logs each line once, in that format."""
    program = """
import logging
logging.basicConfig(format="MINE %(message)s", level="INFO")
from zroute import App
app = App(sub="tcp://127.0.0.1:1")
app.subscribe("a")(print)
app.run(seconds=0.01)
"""
    done = run("-c", program)
    stopping = [line for line in done.stderr.splitlines() if "stopping" in line]
    assert stopping == ["MINE stopping: 0.01 s elapsed"]


RAISING = """
import logging
from zroute import App, SchemaError
app = App(name="quotes", pub="inproc://a")
app.publisher("a", int)
log = logging.getLogger("mine")

@app.on_startup
def begin():
    log.info("text\\tof a peer: \\x1b[2J\\x9b")
    for error in (ValueError("one\\nFORGED"), KeyError("\\n"), RuntimeError(""), ValueError("\\n"), Odd(), wrapped()):
        try:
            raise error
        except Exception:
            log.exception("raised")

class Odd(Exception):
    def __str__(self):
        raise LookupError

def wrapped():
    error = TypeError("outer")
    error.__cause__ = SchemaError("a list:\\n  - of\\n  - ours", schema=int)
    error.add_note("noted\\nFORGED")
    return error
"""


def test_what_is_raised_cannot_forge_a_line_of_the_log(tmp_path: Path) -> None:
    """Tracebacks and zroute's lists keep their lines; the text of an exception takes one."""
    done = zroute("run", "quotes", "--for", "10ms", cwd=module(tmp_path, RAISING))
    lines = done.stderr.splitlines()
    assert "ValueError: one\\nFORGED" in lines
    assert "noted\\nFORGED" in lines
    assert "  - of" in lines
    assert any(line.endswith("text    of a peer: \\u001b[2J\\u009b") for line in lines)
    assert not any(line.startswith("FORGED") for line in lines)
    assert lines.count("Traceback (most recent call last):") == 6
    assert any("Odd: <exception str() failed>" in line for line in lines)
