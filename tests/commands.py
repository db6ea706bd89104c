"""Run the command ``zroute`` to its end."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.interpreters import ROOT, run


def zroute(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m zroute`` to its end."""
    return run("-m", "zroute", *arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL)
