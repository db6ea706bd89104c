"""The log names the line that blocks the reactor, while it blocks; asyncio's reactor runs on uvloop."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.test_run import module
from tests.commands import zroute
from tests.support import ROOT, Child, spans
from zroute.runtime.watchdog import BLOCKED

HEAD = """
import time
from zroute import App
app = App()
numbers = iter(range(10**9))

def slow():
    time.sleep(2)
"""

TICKS = "\n@app.every(0.05)\ndef tick(): print('tick', flush=True)\n"


def log_of(source: str, folder: Path, *flags: str, cwd: Path | None = None) -> list[str]:
    """Run an app in which a function sleeps for two seconds and then prints "done"; return its log.

    The watchdog does not count the time in which the machine does not run it. If it misses the function, the function
    sleeps longer.
    """
    path = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    for seconds in spans(2):
        module(folder, source.replace("sleep(2)", f"sleep({seconds:g})") + TICKS)
        with Child("-m", "zroute", "run", "quotes", *flags, cwd=cwd or folder, env=path) as child:
            child.wait_for(lambda lines: "done" in lines and len(lines) > lines.index("done") + 10)
            assert child.end(signal.SIGINT) == 0
        if any("has blocked the reactor" in line for line in child.err):
            break
    return [line.replace(f"sleep({seconds:g})", "sleep(2)") for line in child.err]


def test_a_second_is_too_long() -> None:
    """The other tests repeat with longer times on a busy machine, so they do not show the limit."""
    assert BLOCKED == 1.0


@pytest.mark.parametrize("reactor", ["select", "asyncio"])
def test_a_handler_that_blocks_is_named_once_while_it_does(tmp_path: Path, reactor: str) -> None:
    """The log names function, file, line and statement, and afterwards the duration."""
    source = HEAD + "@app.every(60)\ndef on_tick():\n    slow()\n    print('done', flush=True)\n"
    log = log_of(source, tmp_path, "--reactor", reactor)
    (line,) = (line for line in log if "has blocked the reactor" in line)
    assert re.search(r"slow\(\) at quotes\.py:8 has blocked the reactor for \d+\.\d s in `time\.sleep\(2\)`: ", line)
    assert "the app receives and sends nothing meanwhile" in line
    assert "(thread=True)" in line
    assert sum("the reactor is running again after" in line for line in log) == 1


def test_a_loop_without_end_is_named(tmp_path: Path) -> None:
    """An endless loop in a handler is named although it never returns."""
    folder = module(tmp_path, HEAD + "@app.every(60)\ndef spin():\n    while True:\n        pass\n")
    with Child("-m", "zroute", "run", "quotes", cwd=folder) as child:
        assert "spin() at quotes.py:" in child.line_with("has blocked the reactor", stream="err")
        child.end(signal.SIGKILL)


def test_a_stopped_process_accuses_nobody(tmp_path: Path) -> None:
    """A suspended process or machine causes no warning about a handler."""
    source = HEAD + "@app.every(0.05)\ndef tick(): print('tick', flush=True)\n"
    with Child("-m", "zroute", "run", "quotes", cwd=module(tmp_path, source)) as child:
        child.line_with("tick")
        child.process.send_signal(signal.SIGSTOP)
        with Child("-c", "import time; time.sleep(1.6)") as pause:  # the test is about real time
            pause.end(None)
        child.process.send_signal(signal.SIGCONT)
        seen = len(child.out)
        child.wait_for(lambda lines: len(lines) > seen + 10)
        assert child.end(signal.SIGINT) == 0
        assert not any("has blocked the reactor" in line for line in child.err)


BLOCKS_LATER = """
import time
from zroute import App
app = App()

@app.publisher("go", every=60)
def go() -> int: return 1

@app.subscribe("go")
def block(n: int):
    time.sleep(2)
    print("done", flush=True)
"""


@pytest.mark.parametrize("flags", [[], ["--reactor", "asyncio"], ["--uvloop"]])
def test_a_handler_of_a_message_is_named_under_every_loop(tmp_path: Path, flags: list[str]) -> None:
    """A handler is named under every loop, also one in C without Python frames."""
    if flags == ["--uvloop"]:
        pytest.importorskip("uvloop")
    assert any("block() at quotes.py:11 has blocked" in line for line in log_of(BLOCKS_LATER, tmp_path, *flags))


def test_a_handler_of_an_installed_app_is_named(tmp_path: Path) -> None:
    """A handler of an app that is installed in site-packages is named too."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    log = log_of(BLOCKS_LATER, folder, cwd=tmp_path)
    assert any("block() at site-packages" in line and "has blocked" in line for line in log)


ON_UVLOOP = """
import asyncio
from zroute import App
app = App()

@app.publisher("tick", every=0.05)
def tick() -> int: return 1

@app.subscribe("tick")
async def on_tick(n: int):
    await asyncio.sleep(0.001)
    print(type(asyncio.get_running_loop()).__module__, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not for Windows")
@pytest.mark.parametrize("flags", [["--uvloop"], ["--reactor", "asyncio", "--uvloop"]])
def test_asyncio_runs_on_uvloop_when_asked(tmp_path: Path, flags: list[str]) -> None:
    """--uvloop implies the asyncio reactor, and handlers run on uvloop's loop."""
    pytest.importorskip("uvloop")
    with Child("-m", "zroute", "run", "quotes", *flags, cwd=module(tmp_path, ON_UVLOOP)) as child:
        child.line_with("uvloop")
        assert child.end(signal.SIGINT) == 0


def test_uvloop_with_another_reactor_is_a_usage_error(tmp_path: Path) -> None:
    """The error names the conflicting options, or the package to install."""
    folder = module(tmp_path, ON_UVLOOP)
    done = zroute("run", "quotes", "--reactor", "select", "--uvloop", cwd=folder)
    assert done.returncode == 2
    assert "uvloop is an asyncio loop, but the requested reactor is 'select'" in done.stderr
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    missing = zroute("run", "quotes", "--uvloop", cwd=folder, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    assert missing.returncode == 2
    assert "pip install 'zroute[uvloop]'" in missing.stderr
