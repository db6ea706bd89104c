"""The sessions that the documentation shows of the examples: each is played again, over real sockets."""

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
    """Return the lines that a recorded session shows, without commands and what is typed."""
    typed = {line for terminal in ALL[name].terminals for line in terminal.typed}
    lines = [line for block in blocks(SESSIONS / f"{name}.md") for line in block.text.splitlines()]
    return [line for line in lines if not line.startswith("$ ") and line not in typed and line != "…"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_example_prints_what_the_documentation_shows(tmp_path: Path, name: str) -> None:
    """I type the commands of a session: every line that is shown there appears, but for numbers and symbols."""
    expected = {shape(line) for line in recorded(name)}
    stage = Stage(tmp_path, Ports().__getitem__)
    play(ALL[name], stage, lambda lines: expected <= {shape(line) for line in lines}, pause=0, endless=True)


@pytest.mark.parametrize("name", ALL)
def test_a_recorded_session_has_the_commands_that_are_played(name: str) -> None:
    """The page shows all commands in their terminals, and output, and the first command is the example's own."""
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
    """I add an example, and am told to record it and to give it a place in the menu."""
    examples = ROOT / "examples"
    programs = {path.stem for path in examples.glob("*.py")} | {"desk", "alarm"}
    assert {path.name for path in examples.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        "desk",
        "twistd",
    }
    placed = [name for names in EXAMPLES.values() for name in names]
    assert sorted(placed) == sorted(ALL) == sorted(programs)
    assert {path.stem for path in SESSIONS.iterdir()} == programs
