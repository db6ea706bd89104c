"""Fixtures of the tests with processes and real sockets."""

from __future__ import annotations

import pytest

from tests.patience import wait_longer


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that give no timeout wait longer than by default."""
    wait_longer(monkeypatch)
