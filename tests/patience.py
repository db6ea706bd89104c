"""Timeouts of apps in tests on a machine that stands still for some seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import PATIENCE
from zroute import App, Publication

WAITING: list[Callable[..., Any]] = [
    App.ready,
    App.request,
    App.request_stream,
    App.requester,
    Publication.wait_for_subscribers,
]
"""The functions with a default timeout. `tests/test_app.py` checks these defaults."""


def wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls that give no timeout wait as long as the helpers of the tests: the default is 10 s."""
    for function in WAITING:
        defaults: Any = function
        if "timeout" in (named := dict(defaults.__kwdefaults__ or {})):
            monkeypatch.setattr(function, "__kwdefaults__", named | {"timeout": PATIENCE})
        else:
            *others, _ = defaults.__defaults__
            monkeypatch.setattr(function, "__defaults__", (*others, PATIENCE))
