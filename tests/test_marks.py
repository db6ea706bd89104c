"""Marks that tests get from the names their code uses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from chaos.scenario import Scenario
from tests.interpreters import UNMEASURED
from tests.marks import marks_of
from tests.running import running
from tests.support import PATIENCE, ROOT, Child
from zroute import App
from zroute.testing import TestApp

Marks = Callable[[Callable[..., Any]], set[str]]


@pytest.fixture
def marks(request: pytest.FixtureRequest) -> Marks:
    """Return the marks of a test with this body."""

    def of(body: Callable[..., Any]) -> set[str]:
        item = pytest.Function.from_parent(request.node.parent, name=body.__name__, callobj=body)
        return set(marks_of(item))

    return of


def test_what_only_computes_has_none(marks: Marks) -> None:
    """A test with TestApp, which opens no socket, gets no mark."""

    def test() -> None:
        with TestApp(App()):
            pass

    assert marks(test) == set()


def test_an_app_that_runs_opens_sockets(marks: Marks) -> None:
    """A test that runs an app in its own process gets the mark `sockets`."""

    @pytest_twisted.ensureDeferred
    async def test() -> None:
        async with running(App()):
            pass

    assert marks(test) == {"sockets"}


def start_one() -> None:
    """Start a process, as a helper does."""
    with Child("-c", "pass"):
        pass


def test_a_helper_that_starts_a_process_is_seen_through(marks: Marks) -> None:
    """A helper that starts a process gives the mark `processes`, also if inherited or in another package."""

    def by_a_helper() -> None:
        start_one()

    def by_a_scenario() -> None:
        Scenario(1).play()

    assert "processes" in marks(by_a_helper)
    assert "processes" in marks(by_a_scenario)


QUICK = """
import pytest

@pytest.mark.slow
def test_slow():
    pass

def test_short():
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "profile", "passed"),
    [
        pytest.param((), "quick", 1, id="all"),
        pytest.param(("-n", "2"), "quick", 1, id="workers"),
        pytest.param(("-n", "2", "test_it.py"), "quick", 2, id="workers and a file"),
        pytest.param((), "thorough", 2, id="thorough"),
        pytest.param(("test_it.py",), "quick", 2, id="a file"),
        pytest.param(("-m", "slow"), "quick", 1, id="a mark"),
    ],
)
def test_the_quick_profile_leaves_out_slow_tests_of_the_whole_suite(
    tmp_path: Path, arguments: tuple[str, ...], profile: str, passed: int
) -> None:
    """Slow tests of the whole suite run only in the thorough profile, or if the command names them."""
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\nmarkers =\n  slow\n  processes\n  sockets\n")
    (tmp_path / "conftest.py").write_text("from tests.conftest import *")
    (tmp_path / "test_it.py").write_text(QUICK)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=tmp_path,
        env={**os.environ, "TESTS": profile, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert f"\n{passed} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("profile", "passed"), [("quick", 2), ("thorough", 4)])
def test_other_ways_to_connect_are_tested_once_for_each_test(tmp_path: Path, profile: str, passed: int) -> None:
    """A test runs with all ways and its first values, and with one way and all its other values."""
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    (tmp_path / "conftest.py").write_text("from tests.conftest import *")
    test = "import pytest\n@pytest.mark.parametrize('n', [5, 6])\ndef test_it(way, n):\n    assert n\n"
    (tmp_path / "test_it.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q"],
        cwd=tmp_path,
        env={**os.environ, "TESTS": profile, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    found = [line.split("[")[1] for line in done.stdout.splitlines() if "test_it[" in line]
    assert len(found) == passed, done.stdout + done.stderr
    assert {each.split("-")[0] for each in found} == (
        {"address"} if profile == "quick" else {"address", "name", "ipv6"}
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_inside_a_test_has_its_own_options(tmp_path: Path, workers: int) -> None:
    """Options of the environment reach a run and its workers, which measure coverage, but not the runs of its tests."""
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    (tmp_path / "conftest.py").write_text("from tests.conftest import *")
    (tmp_path / "covered.py").write_text("import os\nfound = 'PYTEST_ADDOPTS' in os.environ\n")
    (tmp_path / "test_it.py").write_text("def test_it():\n    import covered\n    assert not covered.found\n")
    inherited = {name: value for name, value in os.environ.items() if name not in UNMEASURED}
    options = f"-n {workers} --cov=covered --cov-report=term"
    done = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=tmp_path,
        env={**inherited, "PYTEST_ADDOPTS": options, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert re.search(r"covered.py .* 100%", done.stdout), done.stdout
