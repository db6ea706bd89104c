"""``zroute check``: whether apps would start, as far as that can be told without opening anything."""

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
    """Load and compile apps: signatures, schemas, patterns, resources, endpoints. Opens nothing.

    All apps are checked. The exit code is that of the first fault: 3 for an app that can't be
    loaded, 4 for routes, schemas or resources that are invalid, for Routes that no app includes and an app with nothing
    registered, 5 for endpoints that are missing.
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
    """The app and its module, or the exit code that says why not."""
    try:
        with redirect_stdout(sys.stderr):  # what the module prints is no part of the answer
            return find(target, app_dir=app_dir, factory=factory)
    except SystemExit as ended:  # `find` has said why
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
    """Print how it is; the exit code of this app."""
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
    """What starts, and can't be meant."""
    for name, group in never_included(module, loaded):
        yield SetupError(
            f"no app includes Routes {name!r}: write app.include({name}), or check the app that includes it in the "
            "same command",
            where=group.where,
        )
    if not (any(group._holds_anything for group in app._groups()) or app._startup or app._shutdown):
        yield SetupError(
            f"nothing is registered in {target}: put @app.subscribe, @app.publisher or @app.every above a function, or "
            "include the Routes that hold some",
            where=app.where,
        )


def _code_of(error: SetupError) -> int:
    try:
        fail_of_setup(error)
    except SystemExit as ended:
        return int(ended.code or 0)
