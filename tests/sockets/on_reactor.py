"""Run pytest with a chosen reactor: ``python -m tests.sockets.on_reactor poll tests/sockets``."""

from __future__ import annotations

import importlib
import sys

import pytest
import twisted.internet.default


def main(name: str, *arguments: str) -> int:
    """Install the reactor, also one that pytest-twisted has no name for, and run pytest."""
    if name != "asyncio":
        twisted.internet.default.install = importlib.import_module(f"twisted.internet.{name}reactor").install
    code = int(pytest.main(["--reactor", "asyncio" if name == "asyncio" else "default", *arguments]))
    from twisted.internet import reactor

    print(f"reactor: {type(reactor).__name__}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
