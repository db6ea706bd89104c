"""Run pytest with a reactor of one's choice: ``python -m tests.sockets.on_reactor poll tests/sockets``."""

from __future__ import annotations

import importlib
import sys

import pytest


def main(name: str, *arguments: str) -> int:
    """Install the reactor before anything imports one, then run pytest with ``arguments``."""
    importlib.import_module(f"twisted.internet.{name}reactor").install()
    from twisted.internet import reactor

    print(f"reactor: {type(reactor).__name__}", flush=True)
    return int(pytest.main(list(arguments)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
