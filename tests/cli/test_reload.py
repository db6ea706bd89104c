"""`zroute run --reload`: edit, save, and see it run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.test_run import module
from tests.support import Child
from zroute.cli.reload import difference, snapshot

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


def reloading(folder: Path, watching: str) -> Child:
    """The command, with or without watchfiles."""
    if watching == "polling":
        (folder / "without").mkdir()
        (folder / "without" / "watchfiles.py").write_text("raise ImportError('as if it were not installed')")
    path = f"{folder / 'without'}{os.pathsep}{Path(__file__).parents[2]}"
    return Child("-m", "zroute", "run", "quotes", "--app-dir", str(folder), "--reload", env={"PYTHONPATH": path})


@both
def test_a_change_starts_the_app_anew(tmp_path: Path, watching: str) -> None:
    """The old one drains, the new one runs; Ctrl-C ends both with the code of the app."""
    with reloading(module(tmp_path, APP.format(word="one")), watching) as child:
        child.line_with("one")
        module(tmp_path, APP.format(word="two"))
        child.line_with("two")
        assert child.end(signal.SIGINT) == 0
        assert child.out == ["one", "end", "two", "end"]
        assert sum("quotes.py has changed: starting anew" in line for line in child.err) == 1


@both
def test_a_syntax_error_is_shown_and_waited_on(tmp_path: Path, watching: str) -> None:
    """A half-written line ends nothing: it is shown, and the next save runs."""
    with reloading(module(tmp_path, APP.format(word="one")), watching) as child:
        child.line_with("one")
        module(tmp_path, "from zroute import App\napp = App(\n")
        child.line_with("SyntaxError", stream="err")
        child.line_with("the program has ended with 3: waiting for a change", stream="err")
        module(tmp_path, APP.format(word="three"))
        child.line_with("three")
        assert child.end(signal.SIGTERM) == 0


def test_the_app_ends_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the reloader leaves no orphan behind that holds the port."""
    with reloading(module(tmp_path, APP.format(word="one")), "polling") as child:
        child.line_with("one")
        child.process.send_signal(signal.SIGKILL)
        child.line_with("end")


def test_only_python_files_that_may_be_the_apps_count(tmp_path: Path) -> None:
    """Caches, hidden folders, virtual environments and other files are not looked at."""
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
