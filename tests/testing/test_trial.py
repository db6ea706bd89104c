"""`TestApp` in a `twisted.trial.unittest.TestCase`, run by trial."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT

OPENING = """
from collections.abc import Iterator
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zroute import App, as_awaitable
from zroute.testing import TestApp

class Database: ...

def make() -> App:
    app = App()
    doubled = app.publisher("doubled", int)

    @app.resource
    def database() -> Iterator[Database]:
        yield Database()

    @app.subscribe("plain")
    def plain(message: int, database: Database) -> None:
        doubled.publish(2 * message)

    @app.subscribe("thread", thread=True)
    def thread(message: int) -> None:
        app.from_thread(doubled.publish, 2 * message)

    @app.subscribe("slow")
    async def slow(message: int) -> None:
        await as_awaitable(Deferred())

    @app.subscribe("broken")
    def broken(message: int) -> None:
        raise LookupError(f"no {message}")

    @app.every(1.0)
    def tick() -> None:
        doubled.publish(0)

    return app

"""

GOOD = """
class Good(TestCase):
    kind = "twisted"

    def setUp(self):
        entered = TestApp(make(), reactor=self.kind)
        self.t = entered.__enter__()
        self.addCleanup(entered.__exit__, None, None, None)

    def test_handlers_and_threads(self):
        self.t.publish("plain", 1)
        self.t.publish("thread", 2)
        self.assertEqual(self.t.published("doubled"), [0, 2, 4])

    def test_timers(self):
        self.t.advance(3)
        self.assertEqual(self.t.published("doubled"), [0, 0, 0, 0])

    def test_an_error_that_is_expected(self):
        self.assertRaises(LookupError, self.t.publish, "broken", 1)

class GoodOnAsyncio(Good):
    kind = "asyncio"

class Waiting(TestCase):
    def test_beside_the_real_reactor(self):
        with TestApp(make()) as t:
            t.publish("plain", 1)
        from twisted.internet import reactor
        return deferLater(reactor, 0.01, lambda: None)
"""

BAD = """
class Bad(TestCase):
    def test_broken(self):
        with TestApp(make()) as t:
            t.publish("broken", 7)

    def test_unfinished(self):
        with TestApp(make()) as t:
            t.publish("slow", 1)

    def test_wrong(self):
        with TestApp(make()) as t:
            t.publish("plain", 1)
            self.assertEqual(t.published("doubled"), [3])

    def test_after_all_that(self):
        with TestApp(make()) as t:
            t.publish("plain", 1)
            self.assertEqual(t.published("doubled"), [0, 2])
"""


def trial(folder: Path, source: str, *flags: str) -> tuple[int, str]:
    """Return the exit code and the output of trial."""
    (folder / "test_mine.py").write_text(OPENING + source)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "twisted.trial", *flags, "test_mine"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("flags", [(), ("--reactor", "asyncio")])
def test_tests_pass_and_leave_nothing_behind(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Under both of trial's reactors, a test leaves no call, reader, error or warning."""
    code, said = trial(tmp_path, GOOD, *flags)
    assert code == 0, said
    assert "PASSED (successes=7)" in said, said
    for word in ("Dirty", "Unhandled", "Warning"):
        assert word not in said, said


def test_a_failing_handler_fails_its_test_only(tmp_path: Path) -> None:
    """A failed handler is reported with its line, an endless one is named, and other tests pass."""
    code, said = trial(tmp_path, BAD)
    assert code == 1, said
    assert "FAILED (failures=1, errors=2, successes=1)" in said, said
    assert "builtins.LookupError: no 7" in said
    assert "test_mine.py" in said
    assert "UnfinishedError: still running when the test ended: slow(): 1" in said
    assert "Lists differ: [0, 2] != [3]" in said
    assert "Dirty" not in said
