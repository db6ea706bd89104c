"""What all seeds of trouble have in common: processes, files, a story of what was done, and a verdict at the end."""

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

from chaos.proxy import TroubleProxy
from tests.support import Child

PATIENCE = 120.0
"""Seconds until a wait fails: a flood whose handlers wait takes most of a minute on a busy machine."""


@dataclass
class Play:
    """One seed. A subclass acts in `perform` and judges the record files in `judge`.

    ``done`` tells the story, ``wrong`` what did not hold, ``figures`` are numbers to be summed up over seeds.
    """

    seed: int
    folder: Path = field(init=False)
    chance: random.Random = field(init=False)
    stack: ExitStack = field(init=False)
    done: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    children: list[Child] = field(default_factory=list)

    def play(self) -> dict[str, int]:
        """Perform and judge; return the figures.

        Raises AssertionError with the story and everything that did not hold; the record files are kept then.
        """
        self.chance = random.Random(self.seed)
        self.folder = Path(tempfile.mkdtemp(prefix=f"chaos-{self.seed}-"))
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
        """Note ``otherwise`` as wrong unless it ``holds``."""
        if not holds:
            self.wrong.append(otherwise)

    def child(self, *arguments: str) -> Child:
        """Start a process that ends with this seed at the latest.

        It has a session of its own, so that Ctrl-C at a terminal reaches only who started the seeds.
        """
        child = self.stack.enter_context(Child(*arguments, start_new_session=True))
        self.children.append(child)
        return child

    def abandon(self) -> None:
        """Kill all processes, from another thread: the command ends and does not wait for this seed."""
        for child in tuple(self.children):
            child.process.kill()

    def proxy(self, port: int, host: str = "127.0.0.1") -> TroubleProxy:
        """Start a proxy before ``port`` that ends with this seed."""
        return self.stack.enter_context(_closing(TroubleProxy(port, host)))

    def wait(self, what: str, found: Callable[[], bool]) -> None:
        """Wait until ``found()``; raises AssertionError with `situation` when time is over."""
        deadline = time.monotonic() + PATIENCE
        while not found():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}\n{self.situation()}")
            time.sleep(0.1)

    def situation(self) -> str:
        """Describe what the processes say now, for a wait that failed."""
        return "\n".join(f"{child.out[-2:]} {child.err[-5:]}" for child in self.children)


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a record that are complete."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


@contextmanager
def _closing(proxy: TroubleProxy) -> Iterator[TroubleProxy]:
    try:
        yield proxy
    finally:
        proxy.close()
