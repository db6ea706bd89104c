"""Handlers that block: the log names the line while it happens. And asyncio's reactor on uvloop."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.test_run import module, zroute
from tests.support import ROOT, Child

HEAD = """
import time
from zroute import App
app = App()
numbers = iter(range(10**9))

def slow():
    time.sleep(2)
"""


@pytest.mark.parametrize("reactor", ["select", "asyncio"])
def test_a_handler_that_blocks_is_named_once_while_it_does(tmp_path: Path, reactor: str) -> None:
    """Function, file, line and the statement; then, how long it was."""
    source = HEAD + "@app.every(60)\ndef on_tick():\n    slow()\n    print('done', flush=True)\n"
    folder = module(tmp_path, source)
    with Child("-m", "zroute", "run", "quotes", "--reactor", reactor, cwd=folder) as child:
        line = child.line_with("has blocked the reactor", stream="err")
        assert "slow() at quotes.py:8 has blocked the reactor for 1." in line
        assert "in `time.sleep(2)`: no message is received or sent meanwhile" in line
        assert "@app.subscribe(…, thread=True)" in line
        child.line_with("the reactor runs again, after", stream="err")
        assert child.end(signal.SIGINT) == 0
        assert sum("has blocked the reactor" in line for line in child.err) == 1


def test_a_loop_without_end_is_named(tmp_path: Path) -> None:
    """`while True` in a handler: the log says where, though the program never comes back."""
    folder = module(tmp_path, HEAD + "@app.every(60)\ndef spin():\n    while True:\n        pass\n")
    with Child("-m", "zroute", "run", "quotes", cwd=folder) as child:
        assert "spin() at quotes.py:" in child.line_with("has blocked the reactor", stream="err")
        child.end(signal.SIGKILL)


def test_a_stopped_process_accuses_nobody(tmp_path: Path) -> None:
    """Ctrl-Z for a while, or a laptop that slept, is no handler's fault."""
    source = HEAD + "@app.every(0.05)\ndef tick(): print('tick', flush=True)\n"
    with Child("-m", "zroute", "run", "quotes", cwd=module(tmp_path, source)) as child:
        child.line_with("tick")
        child.process.send_signal(signal.SIGSTOP)
        with Child("-c", "import time; time.sleep(1.6)") as pause:  # real time has to pass: that is what is tested
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
"""


@pytest.mark.parametrize("flags", [[], ["--reactor", "asyncio"], ["--uvloop"]])
def test_a_handler_of_a_message_is_named_under_every_loop(tmp_path: Path, flags: list[str]) -> None:
    """Also where the loop is written in C, and has no frames that Python sees."""
    if flags == ["--uvloop"]:
        pytest.importorskip("uvloop")
    with Child("-m", "zroute", "run", "quotes", *flags, cwd=module(tmp_path, BLOCKS_LATER)) as child:
        assert "block() at quotes.py:11" in child.line_with("has blocked the reactor", stream="err")


def test_a_handler_of_an_installed_app_is_named(tmp_path: Path) -> None:
    """Where the app itself lives in site-packages, as in production, its handler is named all the same."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    path = f"{module(folder, BLOCKS_LATER)}{os.pathsep}{ROOT}"
    with Child("-m", "zroute", "run", "quotes", cwd=tmp_path, env={"PYTHONPATH": path}) as child:
        assert "block() at site-packages" in child.line_with("has blocked the reactor", stream="err")


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
    """--uvloop: the loop that handlers run on is uvloop's; asyncio is implied."""
    pytest.importorskip("uvloop")
    with Child("-m", "zroute", "run", "quotes", *flags, cwd=module(tmp_path, ON_UVLOOP)) as child:
        child.line_with("uvloop")
        assert child.end(signal.SIGINT) == 0


def test_uvloop_with_another_reactor_is_a_usage_error(tmp_path: Path) -> None:
    """It says which two don't go together; and what to install where it is missing."""
    folder = module(tmp_path, ON_UVLOOP)
    done = zroute("run", "quotes", "--reactor", "select", "--uvloop", cwd=folder)
    assert done.returncode == 2
    assert "uvloop is an asyncio loop, but the requested reactor is 'select'" in done.stderr
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    missing = zroute("run", "quotes", "--uvloop", cwd=folder, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    assert missing.returncode == 2
    assert "pip install 'zroute[uvloop]'" in missing.stderr
