"""The handler of commands for two signals, and the one list of exit codes."""

from __future__ import annotations

import ast
import signal
from typing import Any

import pytest

from tests.support import ROOT
from zroute.runtime import signals


def test_the_second_signal_ends_at_once_unless_it_belongs_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first signal stops, further ones within 0.2 s are ignored, and each later one ends the process."""
    calls: list[Any] = []
    times = iter((10.0, 10.0, 10.2, 10.3, 10.3))
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(times))
    handler = signals.StopSignals(lambda: calls.append("stop"), calls.append)
    assert not handler.arrived
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        handler(number, None)
        assert handler.arrived
    assert calls == ["stop"]
    handler(signal.SIGINT, None)
    handler(signal.SIGTERM, None)
    assert calls == ["stop", signal.SIGINT, signal.SIGTERM]


def test_all_exit_codes_are_in_one_module() -> None:
    """No other module defines a constant for an exit code."""
    defining = {
        path.name
        for path in (ROOT / "zroute").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and "EXIT_" in ast.unparse(node.targets[0])
    }
    assert defining == {"exit_codes.py"}
