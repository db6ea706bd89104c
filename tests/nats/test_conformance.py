"""The conformance suite of transports over NATS, in a process with asyncio's reactor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("plugin", ["no:cacheprovider", "tests.nats.public"], ids=["direct", "public"])
def test_nats_behaves_as_the_other_transports(plugin: str) -> None:
    """The conformance suite passes over a real server; a test process has only one reactor, so another one runs it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "--reactor", "asyncio", "-k", "nats"]
    done = subprocess.run(
        [*command, "tests/transports/test_conformance.py", "tests/transports/test_conformance_of_jobs.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
