"""Requests and replies: the runs of ``bench_requests.py``.

Each contestant is two processes that talk over TCP.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from benchmarks import bench_requests
from benchmarks.running import CPU, WHOLE, Contestant, Figures, Group
from benchmarks.workloads import Scale

__all__ = ["groups"]


def _measure(name: str, requests: int) -> Figures:
    found = bench_requests.requests_of(name, requests)
    rate = found.pop("requests/s")
    return {CPU: found.pop("CPU us") * 1000, "requests/s": rate, **found}


def groups(scale: Scale) -> list[Group]:
    """Return the group of requests; its CPU figure is the client's."""
    names = {"bare": "hand-written, pyzmq in the same reactor"}
    contestants = tuple(
        Contestant(
            names.get(name, name),
            partial(_measure, name, scale.requests),
            WHOLE,
            None if "txZMQ" not in name or find_spec("txzmq") else "txZMQ is not installed (the extra `dev`)",
        )
        for name in bench_requests.REQUESTS
    )
    title = f"requests and replies over TCP, {bench_requests.WINDOW} under way (p50 and p99: one after the other)"
    return [Group("requests", title, contestants, names["bare"])]
