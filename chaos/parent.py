"""Let processes of the chaos suite end with their parent, even if it is killed."""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Exit at once when standard input, a pipe from the parent, is closed.

    For programs that do not read standard input.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            continue
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
