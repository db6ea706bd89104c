"""The cost of a message, as a ratio of instructions to a hand-written loop in the same process."""

from __future__ import annotations

import json
import platform
import shutil
import sys

import pytest

from benchmarks.instruction_ratios import MACHINE, ratios
from tests.support import ROOT

FILE = ROOT / "tests" / "data" / "instruction-ratios.json"
"""The output of ``python -m benchmarks.instruction_ratios``. After an intended change of the cost, write it again."""

KNOWN = json.loads(FILE.read_text())

MARGIN = 0.03
"""By how much a ratio may differ from the known one, as a fraction of the known one.

Ratios of the same code differ by 0.2 % or less. A change elsewhere in zroute may move one by 1.5 %, because the
addresses of objects decide about collisions in caches.
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif(platform.machine() != MACHINE, reason=f"client requests are known for {MACHINE}")
@pytest.mark.skipif(sys.version != KNOWN["python"], reason=f"the ratios are known for Python {KNOWN['python']}")
def test_a_message_takes_as_many_instructions_as_before() -> None:
    """Publishing and receiving become neither dearer nor cheaper by 3 %."""
    found = ratios()
    assert found.keys() == KNOWN["ratios"].keys()
    changed = {
        name: (known, found[name]) for name, known in KNOWN["ratios"].items() if abs(found[name] / known - 1) > MARGIN
    }
    assert changed == {}
