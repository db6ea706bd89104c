"""The command on a terminal of its own, where it may use colours."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from tests.support import PATIENCE, ROOT


def on_terminal(*arguments: str, cwd: Path, until: str | None = None, **env: str) -> tuple[str, int]:
    """All that the command shows on a terminal of 200 columns, and its exit code.

    It gets SIGINT as soon as it shows ``until``.
    """
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-m", "zroute", *arguments],
        cwd=cwd,
        env={**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "200", **env},
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
    except OSError:  # how Linux says that the last one on the other side has gone
        pass
    finally:
        os.close(ours)
    return shown.decode(), child.wait(PATIENCE)
