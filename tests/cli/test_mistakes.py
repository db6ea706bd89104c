"""The exact output after common mistakes of new users, compared with a data file.

If a text changes, `python -m tests.cli.test_mistakes` writes the file again. Read the difference before a commit.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from tests.commands import zroute
from tests.support import ROOT, spans

MISTAKES = ROOT / "tests" / "data" / "mistakes.txt"
_MARK = re.compile(r"^=== (.*)\n", re.MULTILINE)


def mistakes() -> dict[str, tuple[str, str, str]]:
    """Return the mistakes by name: the module ``mine``, the command, and its output."""
    pieces = _MARK.split(MISTAKES.read_text())
    found = {}
    for name, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        source, rest = piece.split("\n$ zroute ")
        command, _, shown = rest.partition("\n")
        found[name] = (source, command, shown.rstrip("\n"))
    return found


def shown(source: str, command: str) -> str:
    """Run the command and return its output.

    Times, INFO lines and frames of tracebacks are left out.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "mine.py").write_text(source)
        done = zroute(*command.split(), cwd=folder, NO_COLOR="1")
        text = (done.stdout + done.stderr).replace(str(folder), "FOLDER")
    text = re.sub(r"^\d\d:\d\d:\d\d (\w+) +", r"\1 ", text, flags=re.MULTILINE)
    text = re.sub(r"\d+\.\d s\b", "N s", text)
    skipped = ("INFO ", "Traceback ", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith(skipped)]
    return "\n".join([*lines, f"exit {done.returncode}"])


@pytest.mark.parametrize("name", mistakes())
def test_a_usual_mistake_is_answered_with_what_to_do(name: str) -> None:
    """The text says what is wrong, where, what was expected, and what to do."""
    source, command, expected = mistakes()[name]
    blocks = "time.sleep(1.8)"
    # While the machine does not run the app, the app does not count that as blocked.
    for seconds in spans(1.8) if blocks in source else (1.8,):
        longer = f"time.sleep({seconds:g})"
        found = shown(source.replace(blocks, longer), command).replace(longer, blocks)
        if found == expected:
            break
    assert found == expected


if __name__ == "__main__":
    parts = [
        f"=== {name}\n{source}\n$ zroute {command}\n{shown(source, command)}\n"
        for name, (source, command, _) in mistakes().items()
    ]
    MISTAKES.write_text("\n".join(parts))
