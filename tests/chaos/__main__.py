"""``python -m tests.chaos --seeds 500``: that many scenarios, or those of ``--only 17 23``; prints each as it ends."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed

from tests.chaos.scenario import Scenario


def main() -> int:
    """Prints what was done and found; exit code 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--only", type=int, nargs="+", help="these instead")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at the same time (default: as many as CPUs)")
    options = parser.parse_args()
    seeds = options.only or range(options.first, options.first + options.seeds)
    figures: Counter[str] = Counter()
    failed: list[int] = []

    def play(seed: int) -> tuple[float, Scenario, dict[str, int]]:
        began, scenario = time.monotonic(), Scenario(seed)
        try:
            return time.monotonic() - began, scenario, scenario.play()
        except AssertionError as error:
            print(error, flush=True)
            failed.append(seed)
            return time.monotonic() - began, scenario, {}

    with ThreadPoolExecutor(options.jobs) as pool:
        for future in as_completed([pool.submit(play, seed) for seed in seeds]):
            _, scenario, found = future.result()
            figures.update(found)
            print(f"seed {scenario.seed}: {'; '.join(scenario.done)}; {found or 'FAILED'}", flush=True)
    print(f"{len(seeds)} seeds, {len(failed)} failed {sorted(failed)}; {dict(figures)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
