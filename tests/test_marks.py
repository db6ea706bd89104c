"""The marks that tests get by what their code uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from chaos.scenario import Scenario
from tests.marks import marks_of
from tests.running import running
from tests.support import Child
from zroute import App
from zroute.testing import TestApp

Marks = Callable[[Callable[..., Any]], set[str]]


@pytest.fixture
def marks(request: pytest.FixtureRequest) -> Marks:
    """The marks of a test with this body."""

    def of(body: Callable[..., Any]) -> set[str]:
        item = pytest.Function.from_parent(request.node.parent, name=body.__name__, callobj=body)
        return set(marks_of(item))

    return of


def test_what_only_computes_has_none(marks: Marks) -> None:
    """TestApp opens no socket."""

    def test() -> None:
        with TestApp(App()):
            pass

    assert marks(test) == set()


def test_an_app_that_runs_opens_sockets(marks: Marks) -> None:
    """In the process of the tests."""

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
    """Also behind a class that inherits it, and another package."""

    def by_a_helper() -> None:
        start_one()

    def by_a_scenario() -> None:
        Scenario(1).play()

    assert "processes" in marks(by_a_helper)
    assert "processes" in marks(by_a_scenario)
