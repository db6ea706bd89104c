"""The base of all seeds: processes, files, a log of actions, and a verdict."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from chaos.keyed import Ring, drawn
from chaos.proxy import TroubleProxy
from tests.support import Child

PATIENCE = 120.0
"""Seconds until a wait fails. On a busy machine, a flood with slow handlers takes most of a minute."""


@dataclass
class Play:
    """One seed. A subclass acts in `perform` and judges the record files in `judge`.

    ``done`` lists the actions and ``wrong`` the failed checks; ``figures`` are numbers to add up over seeds. ``keys``
    is True if the processes use keys; with None, the seed decides (see `chaos.keyed`).
    """

    names: ClassVar[tuple[str, ...]] = ()
    """The keys of the processes, if they use keys."""

    seed: int
    keys: bool | None = None
    ring: Ring = field(init=False)
    folder: Path = field(init=False)
    chance: random.Random = field(init=False)
    stack: ExitStack = field(init=False)
    done: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    children: list[Child] = field(default_factory=list)

    def play(self) -> dict[str, int]:
        """Perform and judge; return the figures.

        Raises AssertionError with the actions and all failed checks; the record files are then kept.
        """
        self.chance = random.Random(self.seed)
        self.folder = Path(tempfile.mkdtemp(prefix=f"chaos-{self.seed}-"))
        keyed = drawn(self.seed) if self.keys is None else self.keys
        self.ring = Ring(self.folder / "keys" if keyed else None, self.names)
        if keyed:
            self.done.append("with keys")
        try:
            with ExitStack() as self.stack:
                self.perform()
            self.judge()
        except AssertionError as error:
            self.wrong.append(str(error)[-4000:])
        if self.wrong:
            story = "\n".join((*self.done, *self.wrong))
            raise AssertionError(f"seed {self.seed}, files in {self.folder}\n{story}")
        shutil.rmtree(self.folder)
        return dict(self.figures)

    def perform(self) -> None:
        """Start the processes, make trouble, and stop them."""
        raise NotImplementedError

    def judge(self) -> None:
        """Compare the files that the processes wrote."""
        raise NotImplementedError

    def expect(self, holds: bool, otherwise: str) -> None:
        """Record the text ``otherwise`` as a failed check unless ``holds`` is true."""
        if not holds:
            self.wrong.append(otherwise)

    def child(self, *arguments: str, key: str) -> Child:
        """Start a process that is killed at the end of this seed, if it still runs.

        It has a session of its own, so Ctrl-C in a terminal reaches only the command that plays the seeds. ``key`` is
        the name of its key, if the processes use keys.
        """
        child = self.stack.enter_context(Child(*arguments, env=self.ring.of(key), start_new_session=True))
        self.children.append(child)
        return child

    def abandon(self) -> None:
        """Kill all processes, when the command ends before this seed.

        Another thread may call this.
        """
        for child in tuple(self.children):
            child.process.kill()

    def proxy(self, port: int, host: str = "127.0.0.1", buffer: int | None = None) -> TroubleProxy:
        """Start a proxy in front of ``port`` that ends with this seed; see `TroubleProxy` for the arguments."""
        return self.stack.enter_context(_closing(TroubleProxy(port, host, buffer)))

    def wait(self, what: str, found: Callable[[], bool]) -> None:
        """Wait until ``found()`` is true.

        Raises AssertionError with `situation` after `PATIENCE` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        while not found():
            if time.monotonic() > deadline:
                raise AssertionError(f"timed out while waiting for {what}\n{self.situation()}")
            time.sleep(0.1)

    def situation(self) -> str:
        """Return the present state of the processes, for the text of a failed wait."""
        return "\n".join(f"{child.out[-2:]} {child.err[-5:]}" for child in self.children)


def whole_lines(path: Path) -> list[str]:
    """Return the complete lines of a record."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


@contextmanager
def _closing(proxy: TroubleProxy) -> Iterator[TroubleProxy]:
    try:
        yield proxy
    finally:
        proxy.close()
