"""Let processes of the chaos suite end with their parent, even if it is killed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

__all__ = ["end_with_parent"]


def end_with_parent(obey: Callable[[str], object] = lambda word: None) -> None:
    """Exit at once when standard input, a pipe from the parent, is closed.

    Each word that the parent writes is passed to ``obey``, in a thread.
    """

    def watch() -> None:
        while data := os.read(sys.stdin.fileno(), 1024):
            for word in data.decode().split():
                obey(word)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
