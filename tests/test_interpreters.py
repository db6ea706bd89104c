"""A fork of the template is as an interpreter that has just started."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import interpreters
from tests.interpreters import Fork, Template, run, start
from tests.support import PATIENCE, Child

pytestmark = pytest.mark.skipif(
    any(name.startswith("COVERAGE_PROCESS") for name in os.environ), reason="coverage measures new interpreters only"
)

SEEN = """
import json, os, signal, sys, threading, warnings
import __main__

def shown(value):
    return value if isinstance(value, (str, dict, type(None))) else str(getattr(value, "name", type(value)))

def about(stream):
    return [stream.name, stream.mode, stream.encoding, stream.errors, stream.newlines, stream.line_buffering,
            stream.write_through, type(stream.buffer).__name__, stream.isatty()]

print(json.dumps({
    "main": {name: shown(value) for name, value in vars(__main__).items() if name.startswith("__")},
    "streams": [about(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "originals": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
    "arguments": [sys.argv, sys.orig_argv],
    "path": sys.path,
    "flags": str(sys.flags),
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "input": sys.stdin.read(),
    "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "blocked": str(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "threads": [thread.name for thread in threading.enumerate()],
    "hook": sys.excepthook is sys.__excepthook__,
    "filters": str(warnings.filters),
    "files": sorted(os.listdir("/dev/fd")),
}))
"""

ENDS = {
    "the end": "pass",
    "an exit code": "import sys; sys.exit(3)",
    "a text": "raise SystemExit('why')",
    "an error": "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('b') from error",
    "a syntax error": "def",
    "a hook": "import sys\nsys.excepthook = lambda *error: print('mine', error[2].tb_lineno)\n1 / 0",
    "Ctrl-C": "raise KeyboardInterrupt",
    "a signal": "import os; os.kill(os.getpid(), 15)",
    "what is left": "import atexit\nclass Left:\n    def __del__(self): print('freed')\nleft = Left()\n"
    "atexit.register(print, 'at exit')\nprint('unflushed', end='')",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork in the thorough profile too."""
    monkeypatch.setattr(interpreters, "THOROUGH", False)


def programs(folder: Path, source: str) -> list[tuple[str, ...]]:
    """Return the ways to run ``source`` with two arguments."""
    (folder / "program.py").write_text(source)
    return [(*way, "one", "--two") for way in (("-c", source), ("-m", "program"), ("program.py",))]


@pytest.mark.parametrize("way", range(3), ids=["-c", "-m", "file"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"env": {"PYTHONUNBUFFERED": "1", "PYTHONPATH": f"sub{os.pathsep}{interpreters.ROOT}", "MINE": "é\udcff"}},
        {"process_group": 0},
        {"start_new_session": True},
        {"stderr": subprocess.STDOUT},
    ],
    ids=repr,
)
def test_a_program_sees_what_it_sees_in_a_new_interpreter(tmp_path: Path, way: int, options: dict[str, Any]) -> None:
    """Arguments, paths, variables, streams, signals and process group are those of a new interpreter."""
    arguments = programs(tmp_path, SEEN)[way]
    fork, fresh = (json.loads(seen(arguments, tmp_path, fresh, **options)) for fresh in (False, True))
    assert fork == fresh
    assert fork["input"] == "given"


def seen(arguments: tuple[str, ...], cwd: Path, fresh: bool, **options: Any) -> bytes:
    """Return the output of a program, as bytes."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with start(*arguments, cwd=cwd, fresh=fresh, **{**pipes, **options}) as process:
        assert isinstance(process, Fork) is not fresh
        output, errors = process.communicate(b"given", PATIENCE)
        assert process.returncode == 0, errors
        return bytes(output)


@pytest.mark.parametrize("way", range(3), ids=["-c", "-m", "file"])
@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_in_a_new_interpreter(tmp_path: Path, way: int, end: str) -> None:
    """The exit code, the output and the traceback are those of a new interpreter."""
    arguments = programs(tmp_path, ENDS[end])[way]
    fork, fresh = (run(*arguments, cwd=tmp_path, fresh=fresh) for fresh in (False, True))
    assert (fork.returncode, fork.stdout) == (fresh.returncode, fresh.stdout)
    if way == 0:  # from Python 3.13 on, tracebacks show the lines of -c, which a fork does not know
        assert without_sources(fork.stderr) == without_sources(fresh.stderr)
    else:
        assert fork.stderr == fresh.stderr


def without_sources(traceback: str) -> list[str]:
    """Return the lines of a traceback that are not source lines or marks below them."""
    return [line for line in traceback.splitlines() if not line.startswith("    ")]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_terminal_is_a_terminal(fresh: bool) -> None:
    """Output to a terminal is written line by line."""
    ours, theirs = pty.openpty()
    source = "import sys\nprint(sys.stdout.isatty(), sys.stdin.isatty())\nsys.stdin.read()"
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with start("-c", source, env={"PYTHONUNBUFFERED": ""}, fresh=fresh, **terminal) as process:
        os.close(theirs)
        try:
            with open(ours, closefd=False) as shown:
                assert shown.readline() == "True True\n"
        finally:
            process.kill()
    os.close(ours)
    assert process.returncode == -signal.SIGKILL


def test_no_reactor_is_installed_and_no_context_is_open() -> None:
    """A program chooses its reactor itself, after it has imported zroute."""
    source = (
        "import sys, zmq, zroute.app, zroute.cli.run\nimport threading, asyncio\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
        "assert zmq.Context._instance is None\nassert threading.active_count() == 1\n"
        "assert asyncio.get_event_loop_policy()._local._loop is None\n"
        "assert not {'tests', 'pytest', 'coverage'} & sys.modules.keys()\n"
        "from twisted.internet import selectreactor\nselectreactor.install()"
    )
    assert run("-c", source).stderr == ""


def test_forks_differ_in_random_numbers() -> None:
    """No two forks draw the same numbers."""
    source = "import random, secrets, uuid; print(random.random(), secrets.token_hex(), uuid.uuid4())"
    drawn = [number for _ in range(2) for number in run("-c", source).stdout.split()]
    assert len(set(drawn)) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"fresh": True},
        {"env": {"PYTHONUTF8": "1"}},
        {"env": {"LD_PRELOAD": ""}},
        {"env": {"TZ": "Asia/Tokyo"}},
        {"env": {"COVERAGE_PROCESS_CONFIG": ":data:"}},
        {"pass_fds": (0,)},
    ],
    ids=repr,
)
def test_what_concerns_the_interpreter_itself_starts_a_new_one(options: dict[str, Any]) -> None:
    """Variables of Python and of the loader, inherited files, and coverage need a new interpreter."""
    with start("-c", "pass", **options) as process:
        assert not isinstance(process, Fork)


@pytest.mark.parametrize("flag", ["-X", "-W", "-O", "-u", "-I"])
def test_a_flag_of_the_interpreter_starts_a_new_one(flag: str) -> None:
    """Only ``-c`` and ``-m`` are no flags of the interpreter."""
    assert not interpreters.can_fork((flag, "-c", "pass"), os.environ)


def test_the_thorough_profile_starts_new_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thorough profile, each program imports everything itself, as for a user."""
    monkeypatch.setattr(interpreters, "THOROUGH", True)
    with start("-c", "pass") as process:
        assert not isinstance(process, Fork)


def test_children_live_side_by_side_and_end_in_any_order() -> None:
    """Several forks run at the same time; each has its own exit code, and signals reach one of them."""
    source = "import sys\nprint('up')\nsys.exit(int(sys.stdin.read()))"
    with Child("-c", source) as one, Child("-c", source) as two, Child("-c", source) as three:
        for child in (one, two, three):
            assert isinstance(child.process, Fork)
            child.line_with("up")
            assert child.process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            one.process.wait(0.01)
        for child, code in ((three, 3), (one, 1)):
            child.process.communicate(str(code), PATIENCE)
            assert child.process.wait() == child.process.poll() == code
        assert two.end(signal.SIGTERM) == -signal.SIGTERM


def test_a_template_ends_with_its_process() -> None:
    """The template has no life of its own: it ends when the socket of its owner closes, even if a fork still runs."""
    template = Template()
    ours, theirs = os.pipe()
    request = {"folder": "/", "environment": {}, "group": {"session": False, "group": 0}}
    sleeps = {"arguments": ["-c", "import time; print('up', flush=True); time.sleep(1000)"]}
    process = template.ask({**request, **sleeps}, [theirs, theirs, theirs])
    os.close(theirs)
    try:
        assert os.read(ours, 10) == b"up\n"
        template.end()
        os.kill(process, 0)
    finally:
        os.kill(process, signal.SIGKILL)
        os.close(ours)


def test_a_template_ends_with_a_killed_process() -> None:
    """Nothing is left of a worker that was killed."""
    source = (
        "from tests import interpreters\ninterpreters.THOROUGH = False\n"
        "process = interpreters.start('-c', 'pass')\nprint(interpreters.template()._process.pid, flush=True)\n"
        "import signal; signal.pause()"
    )
    ours, theirs = os.pipe()
    with Child("-c", source, fresh=True, env={"TESTS": ""}) as owner:
        os.close(theirs)
        process = int(owner.line_with(""))
        owner.process.kill()
        owner.process.wait()
    os.close(ours)
    assert gone(process)


def test_threads_that_start_programs_at_once_share_a_template() -> None:
    """A process that starts its first programs from several threads can wait for all of them."""
    source = (
        "import threading\nfrom tests import interpreters\ninterpreters.THOROUGH = False\n"
        "together = threading.Barrier(4)\n"
        "def start():\n together.wait()\n print(interpreters.start('-c', 'pass').wait(), flush=True)\n"
        "threads = [threading.Thread(target=start) for _ in range(4)]\n"
        "for each in threads: each.start()\n"
        "for each in threads: each.join()\n"
    )
    with Child("-c", source, fresh=True, env={"TESTS": ""}) as owner:
        assert owner.end(None) == 0
        assert owner.out == ["0"] * 4, owner.err


def gone(process: int) -> bool:
    """Wait until there is no process with this id."""
    for _ in range(int(PATIENCE / 0.01)):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        select.select([], [], [], 0.01)
    return False


def test_two_programs_in_one_file_are_two_programs(tmp_path: Path) -> None:
    """A module that is written again at once, in the same size, is read again."""
    for number in range(3):
        (tmp_path / "again.py").write_text(f"print({number})")
        assert run("-c", "import again", cwd=tmp_path).stdout == f"{number}\n"
