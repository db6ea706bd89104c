"""The cost of the start of ``zroute run``: which code it imports, and how many classes attrs generates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import bench_start
from tests.interpreters import run

APP = f"""{bench_start.SMALL}
import gc
import sys

import attrs

@app.on_startup
def say() -> None:
    print(*sys.modules)
    modules = [module for name, module in sys.modules.items() if name.startswith("zroute.")]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    print(len({{each for each in values if each.__module__.startswith("zroute.") and attrs.has(each)}}))
    print(gc.isenabled(), gc.get_freeze_count() > 50_000)
"""

OPTIONAL = (
    "cattrs",
    "nats",
    "zroute.jobs",
    "zroute.nats.client",
    "zroute.receiving.recoveries",
    "zroute.receiving.working",
    "zroute.sockets.jobs",
)
"""Modules, with the modules inside, that an app without jobs and NATS does not need. cattrs is for rare schemas."""

CLASSES = 158
"""The most attrs classes of zroute. Each is generated at its import, which takes about 0.35 ms."""

AT_MOST = 1.6
"""The most instructions of ``zroute run``, as a ratio to those of the imports that it can't avoid."""


def test_a_plain_app_imports_only_what_it_needs(tmp_path: Path) -> None:
    """`zroute run` imports no optional part, generates few attrs classes, and freezes what it has imported."""
    (tmp_path / "small.py").write_text(APP)
    done = run(*bench_start.RUN, cwd=tmp_path, fresh=True)
    modules, classes, collector = done.stdout.splitlines()
    imported = set(modules.split())
    assert "zroute.transports.zeromq" in imported
    assert not {each for each in imported for name in OPTIONAL if f"{each}.".startswith(f"{name}.")}
    assert 50 < int(classes) <= CLASSES
    assert collector == "True True"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_the_start_takes_few_instructions() -> None:
    """`zroute run` takes at most 1.6 times the instructions of its imports of other packages."""
    with bench_start.prepared() as given:
        imports, whole = (bench_start.instructions(each, *given) for each in (bench_start.IMPORTS, bench_start.RUN))
    assert whole / imports <= AT_MOST
