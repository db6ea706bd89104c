"""Run the command ``zroute`` to its end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.interpreters import PATIENCE, ROOT, run
from tests.support import spans

_LIMITS = {"pub": "--wait", "request": "--timeout"}
"""The options of commands that limit the time for a peer."""


def patient(*arguments: str) -> tuple[str, ...]:
    """Return the arguments of ``zroute`` with a long limit of time for the peer, unless they have a limit.

    The peer is a program of the test, and a busy machine may not run it for longer than the defaults.
    """
    option = _LIMITS.get(arguments[0], "") if arguments else ""
    return (*arguments, option, f"{PATIENCE:g}s") if option and option not in arguments else arguments


def zroute(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m zroute`` to its end."""
    return run("-m", "zroute", *arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL)


def limited(expected: str, first: float, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that ends after a limit of time, {} in its arguments; return the last attempt.

    The first limit is ``first`` seconds. If the errors of the command do not contain the text ``expected``, the machine
    may have stood still meanwhile, and the next attempt has a longer limit. {} in the text is the limit.
    """
    for seconds in spans(first):
        done = zroute(*(argument.replace("{}", f"{seconds:g}s") for argument in arguments), **options)
        if expected.replace("{}", f"{seconds:g} s") in done.stderr:
            break
    return done
