"""Run txZMQ's own tests against ``zroute.txzmq``.

Usage: ``python -m tests.txzmq.their_suite [--reactor=asyncio]``. The tests are loaded unchanged from the installed
txZMQ. Their import of ``txzmq`` gives ``zroute.txzmq``.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NAME, OURS = "txzmq", "zroute.txzmq"


class _Renaming(MetaPathFinder):
    """An import hook that finds ``zroute.txzmq`` as ``txzmq``, and txZMQ's tests in their own folder."""

    def __init__(self, tests: Path) -> None:
        self._tests = tests

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name == f"{NAME}.test":
            return importlib.util.spec_from_file_location(
                name, self._tests / "__init__.py", submodule_search_locations=[str(self._tests)]
            )
        if name.startswith(f"{NAME}.test.") or name.split(".")[0] != NAME:
            return None
        return importlib.util.spec_from_loader(name, _Alias(OURS + name.removeprefix(NAME)))


class _Alias:
    """A loader that gives an imported module a second name."""

    def __init__(self, ours: str) -> None:
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the imported module."""
        return importlib.import_module(self._ours)

    def exec_module(self, module: ModuleType) -> None:
        """Execute nothing, since the module is already executed."""


def main(*arguments: str) -> None:
    """Run trial with the tests."""
    found = PathFinder.find_spec(NAME)
    assert found is not None, "txZMQ is not installed: pip install txZMQ"
    assert found.submodule_search_locations is not None
    sys.meta_path.insert(0, _Renaming(Path(next(iter(found.submodule_search_locations))) / "test"))
    from twisted.scripts.trial import run

    factory = importlib.import_module(f"{NAME}.factory")
    print(factory.__file__, file=sys.stderr)

    sys.argv = ["trial", *arguments, f"{NAME}.test"]
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
