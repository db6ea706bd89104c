"""Fixtures of the tests of runs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    """Return an ipc address for this test only."""
    return f"ipc://{tmp_path}/s"
