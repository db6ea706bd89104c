"""The command on a pseudo terminal, where it may use colours."""

from __future__ import annotations

import os
import pty
import signal
from pathlib import Path

from tests.interpreters import start
from tests.support import PATIENCE


def on_terminal(*arguments: str, cwd: Path, until: str | None = None, **env: str) -> tuple[str, int]:
    """Return the output of the command and its exit code.

    The terminal has 200 columns. The command gets SIGINT as soon as it has printed ``until``.
    """
    ours, theirs = pty.openpty()
    child = start(
        "-m",
        "zroute",
        *arguments,
        cwd=cwd,
        env={"NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm-256color", "COLUMNS": "200", **env},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
            if until is not None and until.encode() in shown:
                child.send_signal(signal.SIGINT)
                until = None
    except OSError:  # Linux reports that the other side is closed
        pass
    finally:
        os.close(ours)
    return shown.decode(), child.wait(PATIENCE)
