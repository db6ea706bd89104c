"""Run apps on the public functions of nats-py, in one test or in a process (a plugin of pytest)."""

from __future__ import annotations

import pytest

from zroute.nats import client


def only_public(patch: pytest.MonkeyPatch) -> None:
    """Let nats-py appear to have none of the private names that the fast path needs."""
    patch.setattr(client, "missing_names", lambda: ["_ps"])


@pytest.fixture(autouse=True)
def _public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply to all tests of a process that loads this module with ``-p``."""
    only_public(monkeypatch)
