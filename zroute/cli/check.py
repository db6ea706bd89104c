"""``zroute check``: whether apps would start, as far as that can be told without opening anything."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

import click

from zroute.cli.loading import EXIT_INTERRUPTED, fail_of_setup, load
from zroute.cli.options import app_options, complete_target, endpoint_options, for_one_app
from zroute.endpoints import Endpoint
from zroute.errors import SetupError

__all__ = ["command"]


@click.command("check")
@click.argument("apps", nargs=-1, required=True, metavar="MODULE[:APP]…", shell_complete=complete_target)
@endpoint_options
@app_options
def command(
    apps: tuple[str, ...], sub: tuple[Endpoint, ...], pub: tuple[Endpoint, ...], app_dir: str, factory: bool
) -> None:
    """Load and compile apps: signatures, schemas, patterns, resources, endpoints. Opens nothing.

    All apps are checked and all faults shown. The exit code is that of the first fault: 3 for an app that can't be
    loaded, 4 for routes, schemas or resources that are invalid, 5 for endpoints that are missing.
    """
    for_one_app(apps, sub, pub)
    codes = [_check(target, sub or None, pub or None, app_dir, factory) for target in apps]
    raise SystemExit(next(filter(None, codes), 0))


def _check(
    target: str, sub: tuple[Endpoint, ...] | None, pub: tuple[Endpoint, ...] | None, app_dir: str, factory: bool
) -> int:
    """Print how it is; the exit code of this app."""
    try:
        with redirect_stdout(sys.stderr):  # what the module prints is no part of the answer
            app = load(target, app_dir=app_dir, factory=factory)
            compiled = app.compile()
            app.endpoints(sub=sub, pub=pub)
    except SetupError as error:
        return _code_of(error)
    except SystemExit as ended:  # `load` has said why
        if ended.code == EXIT_INTERRUPTED:
            raise
        return int(ended.code or 0)
    counts = f"routes {len(compiled.routes)}, publications {len(compiled.outlets)}"
    counts += f", timers and generators {len(compiled.triggers)}, resources {len(compiled.resources)}"
    click.echo(f"{target} is fine: {counts}")
    return 0


def _code_of(error: SetupError) -> int:
    try:
        fail_of_setup(error)
    except SystemExit as ended:
        return int(ended.code or 0)
