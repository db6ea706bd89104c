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

MARGINS = {"published": 0.03, "received": 0.06}
"""By how much a ratio may differ from the known one, as a fraction of the known one.

A reader also counts the turns of the reactor, whose number depends on how fast messages arrive: in five runs, the
ratios differed by up to 3.8 %. Those of publishing differed by 0.2 %.
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif(platform.machine() != MACHINE, reason=f"client requests are known for {MACHINE}")
@pytest.mark.skipif(sys.version != KNOWN["python"], reason=f"the ratios are known for Python {KNOWN['python']}")
def test_a_message_takes_as_many_instructions_as_before() -> None:
    """Publishing becomes neither dearer nor cheaper by 3 %, and receiving by 6 %."""
    found = ratios()
    assert found.keys() == KNOWN["ratios"].keys()
    changed = {
        name: (known, found[name])
        for name, known in KNOWN["ratios"].items()
        if abs(found[name] / known - 1) > MARGINS[name.split(",")[0]]
    }
    assert changed == {}
