"""What the tests of programs share: examples on ports of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT, free_port

EXAMPLES = ROOT / "examples"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A folder with a copy of one example in which every port of ZeroMQ is one that is free here."""

    def copy(name: str) -> Path:
        ports: dict[str, str] = {}
        text = (EXAMPLES / f"{name}.py").read_text()
        text = re.sub(r"(?<=tcp://127\.0\.0\.1:)\d+", lambda found: ports.setdefault(found[0], str(free_port())), text)
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    return copy
