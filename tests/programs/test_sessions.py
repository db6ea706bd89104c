"""The sessions in the documentation of examples, run again over real sockets."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from docs.examples import ALL, SESSIONS, TERMINALS, Stage, play, shape
from docs.hooks import EXAMPLES, files_of
from tests.support import ROOT, free_port
from tests.test_snippets import blocks


class Ports(defaultdict[str, str]):
    """A free port for each port that an example names."""

    def __missing__(self, port: str) -> str:
        self[port] = str(free_port())
        return self[port]


def recorded(name: str) -> list[str]:
    """Return the output lines of a recorded session, without commands and input."""
    typed = {line for terminal in ALL[name].terminals for line in terminal.typed}
    lines = [line for block in blocks(SESSIONS / f"{name}.md") for line in block.text.splitlines()]
    return [line for line in lines if not line.startswith("$ ") and line not in typed and line != "…"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_example_prints_what_the_documentation_shows(tmp_path: Path, name: str) -> None:
    """Every line of a documented session appears again, except for numbers and symbols."""
    expected = {shape(line) for line in recorded(name)}
    stage = Stage(tmp_path, Ports().__getitem__)
    play(ALL[name], stage, lambda lines: expected <= {shape(line) for line in lines}, pause=0, endless=True)


@pytest.mark.parametrize("name", ALL)
def test_a_recorded_session_has_the_commands_that_are_played(name: str) -> None:
    """A page shows all commands and their output, and begins with the example's own command."""
    session = ALL[name]
    shown = [
        (block.title, [line[2:] for line in block.text.splitlines() if line.startswith("$ ")])
        for block in blocks(SESSIONS / f"{name}.md")
    ]
    titles = [f"{TERMINALS[number]} terminal" for number in range(len(session.terminals))]
    assert shown == [
        (title if len(titles) > 1 else "", list(terminal.commands))
        for title, terminal in zip(titles, session.terminals, strict=True)
    ]
    assert recorded(name)
    own = "".join(path.read_text() for path in files_of(name))
    assert session.terminals[0].commands[-1].removeprefix("CHAT=") in own


def test_every_example_has_a_session_and_a_page() -> None:
    """A new example without a recorded session or a place in the menu fails this test."""
    examples = ROOT / "examples"
    programs = {path.stem for path in examples.glob("*.py")} | {"desk", "alarm"}
    assert {path.name for path in examples.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        "cluster",
        "desk",
        "twistd",
    }
    placed = [name for names in EXAMPLES.values() for name in names]
    assert sorted(placed) == sorted(ALL) == sorted(programs)
    assert {path.stem for path in SESSIONS.iterdir()} == programs
