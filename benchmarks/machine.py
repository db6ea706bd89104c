"""Describe the machine and the versions under measurement, as text."""

from __future__ import annotations

import os
import platform
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import zmq

from benchmarks import peers_c, peers_nats

__all__ = ["described"]

PACKAGES = ("zroute", "pyzmq", "msgspec", "Twisted", "txZMQ", "nats-py", "faststream", "pydantic")


def described() -> dict[str, str]:
    """Return names and values, in the order of display."""
    found = {"machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"}
    if hasattr(os, "getloadavg"):
        found["load before"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    found["Python"] = f"{platform.python_implementation()} {platform.python_version()} ({_build()})"
    found["libzmq of pyzmq"] = zmq.zmq_version()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    others = {"libzmq of C": peers_c.version(), "nats-server": peers_nats.version()}
    return found | {name: number for name, number in others.items() if number is not None}


def _build() -> str:
    """Return the compiler of Python, and if it was built with PGO and LTO."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS")
    if not arguments:  # Windows
        return platform.python_compiler()
    words = ["with" if name in arguments else "without" for name in ("--enable-optimizations", "--with-lto")]
    return f"{platform.python_compiler()}, configured {words[0]} PGO and {words[1]} LTO"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
