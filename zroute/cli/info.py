"""``zroute info``: show the versions of this installation, for bug reports."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import click

__all__ = ["command"]

_NEEDED = ("pyzmq", "twisted", "attrs", "cattrs", "msgspec", "msgpack", "click", "rich")
_EXTRAS = ("uvloop", "watchfiles")


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Show the versions of zroute and its dependencies, for bug reports."""
    rows = _rows()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(map(len, rows))
    for name, value in rows.items():
        shown = ", ".join(value) if isinstance(value, list) else "not installed" if value is None else value
        click.echo(f"{name.ljust(width)}  {shown}")


def _rows() -> dict[str, Any]:
    """Return the values to show, by name, in the order of the output.

    The value is None for a package that is not installed. ``reactors`` lists the reactors that this platform supports.
    zmq and Twisted are imported inside this function, because ``zroute info --help`` does not need them.
    """
    import zmq
    from twisted.internet import default

    from zroute.runtime.runner import REACTORS

    rows: dict[str, Any] = {
        "zroute": version("zroute"),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "platform": platform.platform(),
        "libzmq": zmq.zmq_version() + (" with CURVE" if zmq.has("curve") else " without CURVE"),
    }
    rows |= {name: _version(name) for name in (*_NEEDED, *_EXTRAS)}
    rows["reactors"] = [name for name, module in REACTORS.items() if _importable(module)]
    rows["default_reactor"] = next(name for name, module in REACTORS.items() if module == default.install.__module__)
    return rows


def _version(name: str) -> str | None:
    """Return the version of the package ``name``, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _importable(module: str) -> bool:
    """Return True if the platform supports the reactor of this module.

    Importing the module of a reactor does not install that reactor.
    """
    try:
        return find_spec(module) is not None and bool(__import__(module))
    except ImportError:
        return False
