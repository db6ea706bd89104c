"""`zroute run --reload`: a saved file restarts the apps."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import pytest

from tests.cli.test_run import module
from tests.support import PATIENCE, ROOT, Child, spans
from zroute.cli.reload import _watch, difference, snapshot
from zroute.cli.run import _folders

APP = """
from zroute import App
app = App()

@app.on_startup
def begin():
    print("{word}", flush=True)

@app.on_shutdown
def end():
    print("end", flush=True)

@app.every(60)
def tick(): ...
"""

both = pytest.mark.parametrize("watching", ["watchfiles", "polling"])


def reloading(folder: Path, watching: str, *options: str) -> Child:
    """Start the command, with or without watchfiles."""
    if watching == "polling":
        (folder / "without").mkdir()
        (folder / "without" / "watchfiles.py").write_text("raise ImportError('as if it were not installed')")
    path = f"{folder / 'without'}{os.pathsep}{Path(__file__).parents[2]}"
    command = ("-m", "zroute", "run", "quotes", "--app-dir", str(folder), "--reload", *options)
    return Child(*command, env={"PYTHONPATH": path})


@both
def test_a_change_starts_the_app_anew(tmp_path: Path, watching: str) -> None:
    """After a change, the old app drains and the new one runs; Ctrl-C ends with its code."""
    with reloading(module(tmp_path, APP.format(word="one")), watching) as child:
        child.line_with("one")
        module(tmp_path, APP.format(word="two"))
        child.line_with("two")
        assert child.end(signal.SIGINT) == 0
        assert child.out == ["one", "end", "two", "end"]
        assert sum("quotes.py has changed: restarting" in line for line in child.err) == 1
        assert not any("detected" in line for line in child.err)


@both
def test_a_syntax_error_is_shown_and_waited_on(tmp_path: Path, watching: str) -> None:
    """A syntax error is shown, and the next change starts the app again."""
    with reloading(module(tmp_path, APP.format(word="one")), watching) as child:
        child.line_with("one")
        module(tmp_path, "from zroute import App\napp = App(\n")
        child.line_with("SyntaxError", stream="err")
        child.line_with("the program ended with exit code 3: waiting for a file to change", stream="err")
        module(tmp_path, APP.format(word="three"))
        child.line_with("three")
        assert child.end(signal.SIGTERM) == 0


def test_the_app_ends_with_its_parent(tmp_path: Path) -> None:
    """After kill -9 of the parent, the child ends too and frees the port."""
    with reloading(module(tmp_path, APP.format(word="one")), "polling") as child:
        child.line_with("one")
        child.process.send_signal(signal.SIGKILL)
        child.line_with("end")


CLOSES_SLOWLY = (
    APP
    + """
@app.on_shutdown
def close():
    print("closing", flush=True)
    return look()

def look():
    import os
    from twisted.internet import reactor
    from twisted.internet.task import deferLater
    if not os.path.exists("{allowed}"):
        return deferLater(reactor, 0.05, look)
    print("closed", flush=True)
"""
)

SPINS = """
from zroute import App
app = App()

@app.every(60)
def spin():
    print("spinning", flush=True)
    while True: pass
"""


@both
def test_a_second_change_does_not_cut_the_drain(tmp_path: Path, watching: str) -> None:
    """A change during a drain does not cut it short, and the newest text runs afterwards."""
    allowed = tmp_path / "allowed"
    source = CLOSES_SLOWLY.format(word="one", allowed=allowed)
    with reloading(module(tmp_path, source), watching, "--drain-timeout", "100s") as child:
        child.line_with("one")
        module(tmp_path, APP.format(word="half"))
        child.line_with("closing")
        module(tmp_path, APP.format(word="two"))
        Event().wait(1.5)  # for the change to be seen
        allowed.touch()
        child.line_with("two")
        assert child.end(signal.SIGTERM) == 0
        assert child.out[:5] == ["one", "end", "closing", "closed", "two"]


def test_a_handler_that_never_returns_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """A child that can't drain is ended some seconds after the drain timeout."""
    with reloading(module(tmp_path, SPINS), "polling", "--drain-timeout", "100ms") as child:
        child.line_with("spinning")
        child.process.send_signal(signal.SIGKILL)
        child.line_with("the apps have not stopped within 5.1 s", stream="err")
        child.end(None)
        assert not any(reader.is_alive() for reader in child._readers), "a process still holds the output"


def test_a_handler_that_never_returns_is_ended_by_a_second_signal(tmp_path: Path) -> None:
    """Two signals to the parent alone end both processes, with the code of the signal."""
    with reloading(module(tmp_path, SPINS), "watchfiles") as child:
        child.line_with("spinning")
        child.process.send_signal(signal.SIGINT)
        child.process.send_signal(signal.SIGTERM)
        assert child.end(None) == 128 + signal.SIGTERM
        assert not any(reader.is_alive() for reader in child._readers), "a process still holds the output"


def test_an_app_that_ended_by_itself_gives_its_code(tmp_path: Path) -> None:
    """Ctrl-C after the child ended ends with its exit code; lines of the parent can be JSON."""
    options = ("--log-format", "json", "--log-level", "debug")
    with reloading(module(tmp_path, "from zroute import App\napp = App(pub='5')\n"), "polling", *options) as child:
        child.line_with("waiting for a file to change", stream="err")
        assert child.end(signal.SIGINT) == 5
        messages = [json.loads(line)["message"] for line in child.err if not line.startswith("zroute: ")]
        assert sum("watchfiles is not installed" in message for message in messages) == 1


@pytest.mark.parametrize("changes", [0, 1])
def test_the_command_ends_after_its_time(tmp_path: Path, changes: int) -> None:
    """--for counts from the start of the command, also after a change."""
    for seconds in spans(4):
        (folder := tmp_path / f"{seconds:g}").mkdir()
        with reloading(module(folder, APP.format(word="word 0")), "polling", "--for", f"{seconds:g}s") as child:
            child.wait_for(lambda lines: "word 0" in lines or child.process.poll() is not None)
            if "word 0" not in child.out:  # the time was over before the start
                continue
            if changes:
                module(folder, APP.format(word="word 1"))  # the time may be over before that runs
            assert child.end(None) == 0
        assert child.out[:2] == ["word 0", "end"]
        assert child.out[2:] in ([], ["word 1", "end"][: 2 * changes])
        assert not any("waiting for a file to change" in line for line in child.err)
        break
    else:
        pytest.fail("the app has not started in time")


ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "zroute", *sys.argv[1:]])
"""


def test_on_a_terminal_i_can_type_into_the_app_and_ctrl_c_drains_it(tmp_path: Path) -> None:
    """A debugger works in the child, and one Ctrl-C at a terminal still drains it."""
    folder = module(
        tmp_path, APP.format(word="ready") + "\n@app.every(60)\ndef ask(): print('got', input(), flush=True)\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, "run", "quotes", "--app-dir", str(folder), "--reload"]
    child = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        for awaited, typed in ((b"ready", b"hello\n"), (b"got hello", b"\x03"), (None, b"")):
            while awaited is None or awaited not in shown:
                assert select.select([ours], [], [], PATIENCE)[0], shown.decode()
                shown += os.read(ours, 4096)
            os.write(ours, typed)
    except OSError:  # Linux reports that the other side is closed
        pass
    finally:
        os.close(ours)  # hangs up, which ends the remaining processes
        code = child.wait(PATIENCE)
    assert code == 0, shown.decode()
    assert b"stopping: " in shown
    assert b"end\r\n" in shown
    assert b"again" not in shown


def test_apps_that_are_elsewhere_are_watched_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched folders: --app-dir, and those of modules on the path, of files and of packages."""
    for name in ("here", "path/far", "files", "desk/sub"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("here/near.py", "path/far/__init__.py", "files/one.py"):
        (tmp_path / name).write_text("")
    for name in ("desk/__init__.py", "desk/sub/__init__.py", "desk/sub/app.py"):
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path / "path")
    apps = ["near:app", "far.app", f"{tmp_path}/files/one.py:app", "../desk/sub/app.py", "nowhere"]
    expected = [tmp_path / name for name in ("here", "path/far", "files", "desk")]
    assert _folders(apps, str(tmp_path / "here")) == expected


def test_only_python_files_that_may_be_the_apps_count(tmp_path: Path) -> None:
    """Caches, hidden folders, virtual environments and other kinds of files are ignored."""
    for name in ("a.py", "sub/b.py", "notes.txt", ".git/c.py", "venv/d.py", "__pycache__/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    before = snapshot([tmp_path])
    assert sorted(path.name for path in before) == ["a.py", "b.py"]
    assert difference(before, snapshot([tmp_path])) is None
    (tmp_path / "sub" / "b.py").write_text("22")
    assert difference(before, snapshot([tmp_path])) == tmp_path / "sub" / "b.py"
    (tmp_path / "a.py").unlink()
    assert difference(before, snapshot([tmp_path])) == tmp_path / "a.py"


@pytest.mark.parametrize("polls", [False, True])
def test_a_change_before_the_files_are_watched_is_seen(
    tmp_path: Path, polls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child may have read a file that changes before the thread has begun to watch; later changes count too."""
    if polls:
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("1")
    before, changes, ending = snapshot([tmp_path]), SimpleQueue[Path](), Event()
    first.write_text("22")
    watching = Thread(target=_watch, args=((tmp_path,), before, changes.put, ending))
    watching.start()
    try:
        assert changes.get(timeout=PATIENCE) == first
        second.write_text("1")
        while changes.get(timeout=PATIENCE) != second:  # watchfiles may report the first change as well
            pass
    finally:
        ending.set()
        watching.join(PATIENCE)
    assert not watching.is_alive()
