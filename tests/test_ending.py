"""How pytest ends on SIGTERM."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT, Child

HANGING = """
import os

import pytest_twisted
from twisted.internet.defer import Deferred

from tests.support import Child


@pytest_twisted.ensureDeferred
async def test_waits_on_the_reactor():
    program = "import signal; print('up', flush=True); signal.pause()"
    with Child("-c", program, pass_fds=(int(os.environ["HELD"]),)) as child:
        child.line_with("up")
        print("waiting", flush=True)
        await Deferred()


@pytest_twisted.ensureDeferred
async def test_would_run_on_a_stopped_reactor():
    print("went on", flush=True)
"""


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_sigterm_ends_pytest_at_once_and_its_children_with_it(tmp_path: Path, reactor: str) -> None:
    """On SIGTERM no test fails, no further test runs, and no child process is left."""
    module = tmp_path / "test_hanging.py"
    module.write_text(HANGING)
    ours, held = os.pipe()
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio", "-p", "tests.conftest"]
    flags = ["-q", "-s", "-o", "addopts=", *plugins, "--reactor", reactor]
    command = ["-m", "pytest", *flags, f"--rootdir={ROOT}", "-c", "pyproject.toml", str(module)]
    with Child(*command, env={"HELD": str(held)}, pass_fds=(held,)) as run:
        os.close(held)
        run.line_with("waiting")
        assert run.end(signal.SIGTERM) == -signal.SIGTERM
        assert not any("went on" in line or "failed" in line.lower() for line in run.out + run.err)
    ended, _, _ = select.select([ours], [], [], PATIENCE)  # closed when all processes that hold it have ended
    os.close(ours)
    assert ended
