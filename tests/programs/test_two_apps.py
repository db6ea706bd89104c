"""Two apps in one process, over inproc://."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs.terminal import Command, Network, commands, ended
from tests.support import Way
from zroute.testing import TestApp

Example = Callable[[str], Any]


def test_both_together(test_app: Callable[..., TestApp], example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    """One app counts hits for a second and the other shows them; a second without hits shows nothing."""
    program = example("two_apps")
    t = test_app(program.collector, program.screen)
    for page in ("home", "home", "about"):
        t.publish(f"hits.{page}", {"user": "ann"})
    assert capsys.readouterr().out == ""
    t.advance(1.0)
    assert capsys.readouterr().out == "home       ## 2\nabout      # 1\n"
    t.advance(1.0)
    assert capsys.readouterr().out == ""


def test_one_alone(test_app: Callable[..., TestApp], example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    """Each app can be tested without the other."""
    program = example("two_apps")
    t = test_app(program.screen)
    t.publish("totals.home", program.Total("home", 3))
    assert capsys.readouterr().out == "home       ### 3\n"


def shown(lines: list[str]) -> int:
    """Return the number of hits that the screen has shown."""
    return sum(int(line.split()[-1]) for line in lines if line.startswith("home"))


@pytest.mark.parametrize("first", ["collector", "screen"])
def test_as_its_docstring_says(folder: Path, first: str, network: Network) -> None:
    """One command runs both apps in one process, in either order, and every hit is shown."""
    run, visits = commands(folder, "two_apps.py")
    if first == "screen":
        run = Command(" ".join([*run.line.split()[:2], *reversed(run.line.split()[2:])]), {}, folder.parent)
        assert run.line.endswith(":collector")
    with run.start() as program:
        program.line_with(network.address("subscribes, connects to inproc://totals"), stream="err")
        visits.run()
        program.wait_for(lambda lines: shown(lines) == 20)
        ended(program)


def test_in_two_processes(folder: Path, way: Way, network: Network) -> None:
    """Each app runs in a process of its own with another endpoint and no other change."""
    run, visits = commands(folder, "two_apps.py")
    bind, connect = way.meeting()
    begin, collector, screen = run.line.rsplit(maxsplit=2)
    with (
        Command(f"{begin} {collector}", {}, folder.parent).start(*network.flags("--pub", bind)) as counts,
        Command(f"{begin} {screen}", {}, folder.parent).start(*network.flags("--sub", connect)) as shows,
    ):
        with visits.start("--count", "10000") as visiting:
            shows.wait_for(shown)
            ended(visiting)
        ended(shows)
        ended(counts)
