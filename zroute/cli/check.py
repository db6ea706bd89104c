"""``zroute check``: check that apps can start.

It loads and compiles the apps, but opens no socket, no resource and no port. So it does not find an
endpoint that is in use, or a resource that fails to open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from types import ModuleType
from typing import TYPE_CHECKING

import click

from zroute.cli.loading import EXIT_INTERRUPTED, EXIT_INVALID, fail_of_setup, find
from zroute.cli.options import app_options, complete_target, endpoint_options, for_one_app
from zroute.cli.unused import never_included
from zroute.endpoints import Endpoint
from zroute.errors import SetupError

if TYPE_CHECKING:
    from zroute.app import App

__all__ = ["command"]


@click.command("check")
@click.argument("apps", nargs=-1, required=True, metavar="MODULE[:APP]…", shell_complete=complete_target)
@endpoint_options
@app_options
def command(
    apps: tuple[str, ...], sub: tuple[Endpoint, ...], pub: tuple[Endpoint, ...], app_dir: str, factory: bool
) -> None:
    """Load and compile apps without opening anything.

    Checks signatures, schemas, patterns, resources and endpoints of all apps.

    The exit code is that of the first fault. 3: an app can't be loaded. 4: routes, schemas or resources are
    invalid, no app includes a Routes object, or nothing is registered in an app. 5: an endpoint is missing.
    """
    for_one_app(apps, sub, pub)
    found = [_load(target, app_dir, factory) for target in apps]
    loaded = [each[0] for each in found if not isinstance(each, int)]
    codes = [
        each if isinstance(each, int) else _check(target, *each, loaded, sub or None, pub or None)
        for target, each in zip(apps, found, strict=True)
    ]
    raise SystemExit(next(filter(None, codes), 0))


def _load(target: str, app_dir: str, factory: bool) -> tuple[App, ModuleType] | int:
    """Return the app and its module, or the exit code if it can't be loaded.

    Raises:
        SystemExit: With 130, if Ctrl-C interrupted the import.
    """
    try:
        with redirect_stdout(sys.stderr):  # prints of the module must not mix with the result
            return find(target, app_dir=app_dir, factory=factory)
    except SystemExit as ended:  # `find` has printed the reason
        if ended.code == EXIT_INTERRUPTED:
            raise
        return int(ended.code or 0)


def _check(
    target: str,
    app: App,
    module: ModuleType,
    loaded: list[App],
    sub: tuple[Endpoint, ...] | None,
    pub: tuple[Endpoint, ...] | None,
) -> int:
    """Check one app, print the result or the faults, and return its exit code."""
    try:
        with redirect_stdout(sys.stderr):
            compiled = app.compile().parts
            app.endpoints(sub=sub, pub=pub)
    except SetupError as error:
        return _code_of(error)
    faults = list(_faults(target, app, module, loaded))
    for fault in faults:
        _code_of(fault)
    if faults:
        return EXIT_INVALID
    counts = f"routes {len(compiled.routes)}, publications {len(compiled.outlets)}"
    counts += f", timers and generators {len(compiled.triggers)}, resources {len(compiled.resources)}"
    click.echo(f"{target} is fine: {counts}")
    return 0


def _faults(target: str, app: App, module: ModuleType, loaded: list[App]) -> Iterator[SetupError]:
    """Yield an error for each mistake with which an app starts and does nothing."""
    for name, group in never_included(module, loaded):
        yield SetupError(
            f"no app includes Routes {name!r}: write app.include({name}), or add the app that includes it to this "
            "command",
            where=group.where,
        )
    if not (any(group._holds_anything for group in app._groups()) or app._startup or app._shutdown):
        yield SetupError(
            f"nothing is registered in {target}: put @app.subscribe, @app.publisher or @app.every above a function, or "
            "include a Routes object that has some",
            where=app.where,
        )


def _code_of(error: SetupError) -> int:
    """Print ``error`` and return its exit code, without ending the program."""
    try:
        fail_of_setup(error)
    except SystemExit as ended:
        return int(ended.code or 0)
