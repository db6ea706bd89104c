"""The types of the API in mypy and pyright: exactly the marked lines are errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT

pytestmark = pytest.mark.slow

API = ROOT / "tests" / "typing" / "api.py"


def marked() -> set[int]:
    """Return the lines with a deliberate error."""
    lines = API.read_text().splitlines()
    found = {number for number, line in enumerate(lines, 1) if line.endswith("# E")}
    assert len(found) > 20
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Return a checker's output, with any exit code."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE
    )


def test_mypy_finds_the_marked_errors_and_no_others(tmp_path: Path) -> None:
    """mypy in strict mode reports exactly the marked lines."""
    done = run("mypy", "--strict", "--no-warn-unreachable", "--no-error-summary", f"--cache-dir={tmp_path}", str(API))
    found = re.findall(r"^tests/typing/api\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    others = [line for line in done.stdout.splitlines() if "error:" in line and "typing/api.py" not in line]
    assert not others, others
    assert {int(line) for line, _ in found} == marked(), done.stdout + done.stderr


def test_pyright_finds_the_marked_errors_and_no_others() -> None:
    """pyright in strict mode reports exactly the marked lines."""
    try:
        done = run("pyright", "--pythonpath", sys.executable, "--outputjson", str(API))
        diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        pytest.skip("pyright can't be started here: it needs Node, which it downloads when it is first used")
    errors = {
        diagnostic["range"]["start"]["line"] + 1: diagnostic["message"]
        for diagnostic in diagnostics
        if diagnostic["severity"] == "error"
    }
    assert set(errors) == marked(), errors
