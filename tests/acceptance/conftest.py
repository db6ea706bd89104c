"""Times for a machine that stands still for some seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import PATIENCE
from zroute import App
from zroute.declarations.routes import Routes
from zroute.publishing.publication import Publication


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls of a test that give no timeout wait as long as the other helpers: their default is 10 s."""
    waiting: list[Callable[..., Any]] = [
        App.ready,
        App.request,
        App.request_stream,
        Routes.requester,
        Publication.wait_for_subscribers,
    ]
    for function in waiting:
        defaults: Any = function
        if "timeout" in (named := dict(defaults.__kwdefaults__ or {})):
            monkeypatch.setattr(function, "__kwdefaults__", named | {"timeout": PATIENCE})
        else:
            *others, _ = defaults.__defaults__
            monkeypatch.setattr(function, "__defaults__", (*others, PATIENCE))
