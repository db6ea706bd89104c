"""Pause Python's collector while ``zroute`` imports code and apps are compiled.

An import creates many objects and almost no garbage, but each collection visits the objects of all earlier imports.
About an eighth of the start of ``zroute run`` was such work. The command therefore imports without collections, and
then freezes the imported objects (`gc.freeze`): later collections, also while messages arrive, do not visit them.

A process that only imports zroute keeps its collector as it is, because its objects are not zroute's to freeze. Only
while an app is compiled, collections are paused there too: with thousands of handlers they took half of that time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["importing", "paused", "take_over"]

_is_ours = False
"""True if the process runs the command ``zroute``."""


def take_over() -> None:
    """State that this process runs the command, so that `importing` has an effect."""
    global _is_ours
    _is_ours = True


@contextmanager
def importing() -> Iterator[None]:
    """Pause collections in a ``with`` block, then freeze what it has imported."""
    if not _is_ours:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def paused() -> Iterator[None]:
    """Pause collections in a ``with`` block, unless they are off already."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
