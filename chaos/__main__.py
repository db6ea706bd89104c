"""Play seeds of trouble: ``python -m chaos --seeds 500``.

With ``--kind bystanders``, one publisher is in trouble and the others must not be affected. With ``--kind recovery``
and ``short-recovery``, publishers keep a history, and subscribers recover lost messages. With ``whole-recovery``, the
histories suffice, and no message may be lost. In a third of the seeds, or in all with ``--keys``, all connections use
keys.

The command prints each seed as it ends, and then the seed with which ``--first`` can continue. The first Ctrl-C starts
no new seeds and waits for the running ones; the second ends them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

from chaos.bystanders import Bystanders
from chaos.play import Play
from chaos.scenario import Recovery, Scenario, ShortRecovery
from chaos.whole_recovery import WholeRecovery

KINDS: dict[str, type[Play]] = {
    "trouble": Scenario,
    "recovery": Recovery,
    "short-recovery": ShortRecovery,
    "whole-recovery": WholeRecovery,
    "bystanders": Bystanders,
}


class Campaign:
    """Plays seeds on several threads, until none is left, time is up, or Ctrl-C."""

    def __init__(self, kind: type[Play], seeds: list[int], jobs: int, minutes: float | None, keys: bool | None) -> None:
        self._kind = kind
        self._keys = keys
        self._seeds = seeds
        self._coming: Iterator[int] = iter(seeds)
        self._deadline = time.monotonic() + 60 * minutes if minutes else None
        self._lock = threading.Lock()
        self._stopped = False
        self._running: dict[int, Play] = {}
        self._ended: set[int] = set()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        self.failed: list[int] = []
        self._figures: Counter[str] = Counter()

    def play(self) -> None:
        """Play the seeds, then print the results and the progress."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.5)  # returns often, because Python handles signals between the calls
        self.summarize()

    def summarize(self) -> None:
        """Print the results, and the seed to continue with, if one is left."""
        print(f"{len(self._ended)} seeds, {len(self.failed)} failed {sorted(self.failed)}; {dict(self._figures)}")
        left = [seed for seed in self._seeds if seed not in self._ended]
        if left:
            print(f"{len(left)} of {len(self._seeds)} seeds are left: continue with --first {left[0]}", flush=True)

    def interrupt(self, number: int, _: object) -> None:
        """Start no new seeds.

        A second signal, or SIGTERM, kills the running seeds and exits.
        """
        if self._stopped or number == signal.SIGTERM:
            self.summarize()
            for play in tuple(self._running.values()):
                play.abandon()
            os._exit(1)
        self._stopped = True
        print("interrupted: waiting for the running seeds; press Ctrl-C again to end them", flush=True)

    def _next(self) -> Play | None:
        with self._lock:
            late = self._deadline is not None and time.monotonic() > self._deadline
            seed = None if self._stopped or late else next(self._coming, None)
            if seed is None:
                return None
            play = self._running[seed] = self._kind(seed, keys=self._keys)
            return play

    def _work(self) -> None:
        while (play := self._next()) is not None:
            found: dict[str, int] = {}
            try:
                found = play.play()
            except Exception as error:  # an error of the suite fails only its own seed
                print(f"{error}" if isinstance(error, AssertionError) else repr(error), flush=True)
                self.failed.append(play.seed)
            with self._lock:
                self._figures.update(found)
                self._ended.add(play.seed)
                self._running.pop(play.seed, None)  # a seed may be listed twice
                print(f"seed {play.seed}: {'; '.join(play.done)}; {found or 'FAILED'}", flush=True)


def main() -> int:
    """Play the seeds; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--kind", choices=sorted(KINDS), default="trouble", help="kind of seeds (default trouble)")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds (default 20)")
    parser.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--only", type=int, nargs="+", help="play these seeds instead")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel seeds (default: number of CPUs)")
    parser.add_argument("--minutes", type=float, help="start no new seeds after this time")
    keys = argparse.BooleanOptionalAction
    parser.add_argument("--keys", action=keys, help="let all processes use keys, or none (default: the seed decides)")
    options = parser.parse_args()
    seeds = options.only or list(range(options.first, options.first + options.seeds))
    campaign = Campaign(KINDS[options.kind], seeds, options.jobs, options.minutes, options.keys)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, campaign.interrupt)
    campaign.play()
    return bool(campaign.failed)


if __name__ == "__main__":
    sys.exit(main())
