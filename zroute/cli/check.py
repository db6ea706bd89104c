"""``zroute check``: check that apps can start.

The command loads and compiles the apps, and reads their key files, but opens no sockets, ports or resources. It
therefore can't detect an endpoint that is already in use, or a resource that fails to open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from types import ModuleType
from typing import TYPE_CHECKING

import click

from zroute.cli.loading import fail_of_setup, find
from zroute.cli.options import app_options, complete_target, endpoint_options, for_one_app
from zroute.cli.unused import never_included
from zroute.endpoints import EndpointOptions, Ends
from zroute.errors import SetupError, UsageError
from zroute.publishing.publication import Bridge
from zroute.runtime.exit_codes import EXIT_INTERRUPTED, EXIT_INVALID

if TYPE_CHECKING:
    from zroute.app import App
    from zroute.sockets.access import KeyFiles

__all__ = ["command"]


@click.command("check")
@click.argument("apps", nargs=-1, required=True, metavar="MODULE[:APP]…", shell_complete=complete_target)
@endpoint_options
@app_options
def command(apps: tuple[str, ...], ends: EndpointOptions, app_dir: str, factory: bool) -> None:
    """Load and compile apps without opening sockets or resources.

    Checks signatures, schemas, patterns, resources, endpoints and key files of all apps. For an app with keys, also
    shows its key, and who may connect.

    The first error decides the exit code. 2: the apps can't share a reactor. 3: an app can't be loaded. 4: routes,
    schemas or resources are invalid, a Routes object is not included in any app, or nothing is registered in an app. 5:
    an endpoint is missing, or does not fit the keys; or a key file can't be used.
    """
    for_one_app(apps, ends)
    found = [_load(target, app_dir, factory) for target in apps]
    loaded = [each[0] for each in found if not isinstance(each, int)]
    codes = [
        each if isinstance(each, int) else _check(target, *each, loaded, ends)
        for target, each in zip(apps, found, strict=True)
    ]
    if not any(codes):
        _check_reactor(loaded, ends)
    raise SystemExit(next(filter(None, codes), 0))


def _load(target: str, app_dir: str, factory: bool) -> tuple[App, ModuleType] | int:
    """Return the app and its module, or the exit code if the app can't be loaded.

    Raises:
        SystemExit: Ctrl-C interrupted the import. The exit code is 130.
    """
    try:
        with redirect_stdout(sys.stderr):  # the module's own output must not mix with the result
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
    ends: EndpointOptions,
) -> int:
    """Check one app, print the result or the errors, and return its exit code."""
    warnings: list[str] = []
    try:
        with redirect_stdout(sys.stderr):
            plan = app.compile()
            given = app.endpoints(**ends)
            plan.check_access(given)
        keys = _keys_of(given, warnings)
    except SetupError as error:
        error.locate(app.where)
        return _code_of(error)
    compiled = plan.parts
    faults = list(_faults(target, app, given, module, loaded))
    for fault in faults:
        _code_of(fault)
    if faults:
        return EXIT_INVALID
    counts = f"routes {len(compiled.routes)}, publications {len(compiled.outlets)}"
    counts += f", timers and generators {len(compiled.triggers)}, resources {len(compiled.resources)}"
    counts += f", handlers of requests {len(compiled.replies)}" * bool(compiled.replies)
    counts += f", requesters {len(compiled.requesters)}" * bool(compiled.requesters)
    counts += f", handlers of jobs {len(compiled.works)}" * bool(compiled.works)
    counts += f", job queues {len(compiled.queues)}" * bool(compiled.queues)
    publications = [outlet.publication for outlet in compiled.outlets]
    features: dict[str, list[object]] = {
        "handlers that recover lost messages": [route.options.recover for route in compiled.routes],
        "handlers with earlier messages": [route.options.since for route in compiled.routes],
        "histories": [publication.history for publication in publications],
        "snapshots": [publication.snapshot for publication in publications],
    }
    for feature, values in features.items():
        number = len(values) - values.count(None) - values.count(False)
        counts += f", {feature} {number}" * bool(number)
    bridges = sum(isinstance(outlet, Bridge) for route in compiled.handlers for outlet in route.outlets)
    counts += f", bridges to other apps {bridges}" * bool(bridges)
    counts += f", needs reactor {app.reactor!r}" if app.reactor else ""
    counts += f", runs on {given.nats.address}" if given.nats is not None else ""
    forms = "".join(f", {each} is read as {each.form}" for each in given.sub if each.form is not None)
    exposures = filter(None, map(given.access.exposure, given))
    for warning in (*plan.dropped_feeds(given), *warnings, *exposures):
        click.echo(f"{target}: warning: {warning}", err=True)
    click.echo(f"{target} is fine: {counts}{forms}")
    if keys is not None:
        click.echo(f"{target} encrypts as {keys.described}; {keys.rights(given)}")
    return 0


def _keys_of(ends: Ends, warnings: list[str]) -> KeyFiles | None:
    """Return the key files of an app, or None if it has no keys.

    Faults that do not stop the app are added to ``warnings``.

    Raises:
        EndpointError: A key file can't be used, or the key of a peer is missing.
    """
    from zroute.sockets.access import KeyFiles

    if ends.access.keys is None:
        return None
    files = KeyFiles(ends.access, warnings.append)
    for endpoint in ends:
        files.check(endpoint)
    return files


def _check_reactor(loaded: list[App], ends: EndpointOptions) -> None:
    """Raise a usage error, as ``zroute run`` does, if the apps can't share a reactor."""
    from zroute.runtime.runner import check_reactor

    try:
        nats = any(app.endpoints(**ends).nats is not None for app in loaded)
        check_reactor([app.compile() for app in loaded], None, nats=nats)
    except UsageError as error:
        raise click.UsageError(str(error)) from error


def _faults(target: str, app: App, ends: Ends, module: ModuleType, loaded: list[App]) -> Iterator[SetupError]:
    """Yield an error for each mistake that lets an app start but do nothing."""
    for name, group in never_included(module, loaded):
        yield SetupError(
            f"no app includes the Routes object {name!r}: write app.include({name}), or add an app that includes "
            f"{name} to this command",
            where=group.where,
        )
    if app.compile().is_empty(ends):
        yield SetupError(
            f"nothing is registered in {target}: put @app.subscribe, @app.publisher or @app.every above a function, or "
            "include a Routes object with handlers",
            where=app.where,
        )


def _code_of(error: SetupError) -> int:
    """Print ``error`` and return its exit code, without ending the program."""
    try:
        fail_of_setup(error)
    except SystemExit as ended:
        return int(ended.code or 0)
