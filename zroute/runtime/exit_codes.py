"""The exit codes of ``zroute``, except those that an app requests.

Click adds 2 for a usage error, and a second signal with the number n ends a program with 128 + n.
"""

from __future__ import annotations

import signal

__all__ = [
    "EXIT_CANT_LOAD",
    "EXIT_DRAIN",
    "EXIT_ENDPOINT",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_INVALID",
    "EXIT_TIMED_OUT",
]

EXIT_FAILED = 1  # an app did not start, or a command could not do its work
EXIT_CANT_LOAD = 3  # the app can't be found or imported
EXIT_INVALID = 4  # routes, schemas or resources are invalid
EXIT_ENDPOINT = 5  # an endpoint is missing, or can't be opened
EXIT_DRAIN = 75  # EX_TEMPFAIL of sysexits(3): some handlers, resources or threads were unfinished
EXIT_TIMED_OUT = 124  # nothing arrived within --wait, or no subscriber appeared: the code of timeout(1)
EXIT_INTERRUPTED = 128 + signal.SIGINT  # interrupted before there was anything to drain
