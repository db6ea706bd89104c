"""How `zroute run` finds apps, and the errors if it does not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.test_run import EMPTY, module
from tests.commands import zroute
from tests.support import Child
from zroute.endpoints import SIDES, Side

BRIEF = ("--for", "10ms", "--log-level", "error")


@pytest.mark.parametrize("target", ["quotes", "quotes.py", "./quotes.py:app", "{folder}/quotes.py", "quotes:"])
def test_a_module_may_be_named_by_its_file(tmp_path: Path, target: str) -> None:
    """An app can be named by the path of its file."""
    done = zroute("run", target.format(folder=tmp_path), *BRIEF, cwd=module(tmp_path, EMPTY))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("target", ["desk/app.py", "desk/app.py:app", "desk/", "desk.app:app"])
def test_a_file_in_a_package_keeps_its_relative_imports(tmp_path: Path, target: str) -> None:
    """Relative imports work in a module that is named by its path."""
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "__init__.py").write_text("from .app import app\n")
    module(tmp_path / "desk", "from .schemas import name\n" + EMPTY, "app")
    module(tmp_path / "desk", "name = 1\n", "schemas")
    done = zroute("run", target, *BRIEF, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        (":app", "does not name a module"),
        (".", "does not name a module"),
        ("a..b", "does not name a module"),
        ("nothing.py", "nothing.py does not exist"),
        ("sys", "built into Python"),
        ("folder", "has no 'app' or 'create_app'"),
    ],
)
def test_what_names_no_app_is_answered_in_one_line(tmp_path: Path, target: str, answer: str) -> None:
    """A target that is not found gets one line and exit 3, and no traceback of zroute."""
    (tmp_path / "folder").mkdir()
    done = zroute("run", target, cwd=tmp_path)
    assert done.returncode == 3
    assert answer in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_error_that_led_to_another_shows_my_frames_only(tmp_path: Path) -> None:
    """The traceback of a chained error has no frames of Python's import system."""
    module(tmp_path, "import quotes_of_helper\n", "helper")
    source = "try:\n    import helper\nexcept ImportError as error:\n    raise RuntimeError('no helper') from error\n"
    done = zroute("run", "quotes", cwd=module(tmp_path, source))
    assert done.returncode == 3
    files = {line.split('"')[1] for line in done.stderr.splitlines() if line.startswith("  File ")}
    assert files == {str(tmp_path / "quotes.py"), str(tmp_path / "helper.py")}


def test_a_folder_whose_name_starts_like_zroute_is_mine(tmp_path: Path) -> None:
    """A project whose folder begins with zroute's name keeps its frames in tracebacks."""
    program = """
import zroute.cli.loading as loading
print(f"{loading.__file__.removesuffix('/cli/loading.py')}_app/quotes.py".startswith(loading._NOT_THE_USERS))
"""
    with Child("-c", program) as child:
        assert child.end(None) == 0
        assert child.out == ["False"]


def test_ctrl_c_during_a_slow_import_ends_quietly(tmp_path: Path) -> None:
    """Ctrl-C during the import ends with 130 and no traceback."""
    module(tmp_path, "import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    with Child("-m", "zroute", "run", "quotes", "--app-dir", str(tmp_path)) as child:
        child.line_with("importing")
        assert child.end(signal.SIGINT) == 130
        assert child.err == []


LOSES_THE_INTERRUPTION = """
import os, signal, sys

class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100): pass

sys.unraisablehook = lambda _: print("lost", flush=True)
Lost()
"""


def test_ctrl_c_that_python_loses_is_remembered(tmp_path: Path) -> None:
    """Ctrl-C in a destructor ends the command, although Python ignores errors there."""
    done = zroute("run", "quotes", cwd=module(tmp_path, LOSES_THE_INTERRUPTION + EMPTY))
    assert (done.returncode, done.stdout, done.stderr) == (130, "lost\n", "")


@pytest.mark.parametrize(
    "source", ["try:\n    {}\nexcept BaseException as e:\n    raise ImportError('x') from e\n", "{}"]
)
def test_an_error_that_ctrl_c_has_led_to_is_quiet_too(tmp_path: Path, source: str) -> None:
    """Ctrl-C that a module turns into an ImportError ends with 130 and no traceback."""
    folder = module(tmp_path, source.format("import os, signal, time; os.kill(os.getpid(), 2); time.sleep(60)"))
    done = zroute("run", "quotes", cwd=folder)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_an_endpoint_given_twice_is_refused(tmp_path: Path, side: Side) -> None:
    """An endpoint that is given twice is refused: each message would arrive twice."""
    twice = (side.flag, "tcp://127.0.0.1:1", side.flag, "tcp://127.0.0.1:1")
    done = zroute("run", "quotes", *twice, cwd=module(tmp_path, EMPTY))
    assert done.returncode == 2
    verb = "bind" if side.binds else "connect"
    assert f"{side.name}: endpoint '{verb}:tcp://127.0.0.1:1' is given twice" in done.stderr


def test_an_app_under_two_names_is_still_one(tmp_path: Path) -> None:
    """`quotes` and `quotes:app` are the same app, so naming both is a usage error."""
    done = zroute("run", "quotes", "quotes:app", cwd=module(tmp_path, EMPTY))
    assert (done.returncode, "is given twice" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr
