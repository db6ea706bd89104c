"""``zroute run``: run apps as a program."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zroute.cli.loading import fail_of_setup, load
from zroute.cli.options import DURATION, app_options, complete_target, endpoint_options, for_one_app, option
from zroute.endpoints import SIDES, EndpointOptions, parse_ends
from zroute.errors import EndpointError, SetupError, UsageError
from zroute.logs import FORMATS, LEVELS, did_you_mean, set_up_logging
from zroute.options import DRAIN_TIMEOUT
from zroute.runtime.collector import importing

if TYPE_CHECKING:
    from zroute.runtime.runner import LogFormat, LogLevel, Reactor

__all__ = ["command"]

_log = logging.getLogger("zroute")
_REACTORS = ("epoll", "poll", "select", "asyncio")


@click.command("run")
@click.argument("apps", nargs=-1, required=True, metavar="MODULE[:APP]…", shell_complete=complete_target)
@endpoint_options
@app_options
@option("--for", "seconds", type=DURATION, help="Stop after this time, such as 10s, 500ms or 2m.")
@option("--max-messages", type=click.IntRange(min=1), help="Stop after N received messages.", metavar="N")
@option(
    "--drain-timeout",
    type=DURATION,
    default=DRAIN_TIMEOUT,
    help="The maximum time that a stop waits for unfinished handlers.",
)
@option(
    "--reactor",
    type=click.Choice(_REACTORS),
    help="The Twisted reactor to use. Default: the reactor that the apps need.",
)
@option("--uvloop", is_flag=True, help="Run asyncio's reactor on uvloop.")
@option("--reload", is_flag=True, help="Restart when a Python file in --app-dir changes.")
@option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@option("--log-format", type=click.Choice(FORMATS), default="auto", show_default=True)
def command(
    apps: tuple[str, ...],
    ends: EndpointOptions,
    app_dir: str,
    factory: bool,
    seconds: float | None,
    max_messages: int | None,
    drain_timeout: float,
    reactor: Reactor | None,
    uvloop: bool,
    reload: bool,
    log_level: LogLevel,
    log_format: LogFormat,
) -> None:
    """Run apps until SIGINT or SIGTERM.

    If only MODULE is given, zroute looks for `app` in the module, then for `create_app`. Several apps share one process
    and one reactor. Endpoints (--sub and so on) can be given for one app only.

    The first signal stops the apps after their handlers have finished. A second signal ends the program at once.
    """
    for_one_app(apps, ends)
    if (twice := next((name for name in apps if apps.count(name) > 1), None)) is not None:
        raise click.UsageError(f"{twice} is given twice, but a process can run each app only once: give each app once")
    _refuse_repeated(ends)
    if reload:
        from zroute.cli.reload import supervise

        set_up_logging(log_level, log_format)
        raise SystemExit(supervise(_without_reload(sys.argv), _folders(apps, app_dir), seconds))
    with importing():
        import zroute.app  # noqa: F401  # the module of the app imports it: better here, without collections
        from zroute.cli.reload import end_with_parent
        from zroute.runtime.runner import install_reactor, run

    end_with_parent(drain_timeout)  # before the imports, which may take a long time or never end
    try:
        if reactor is not None or uvloop or ends.get("nats"):  # otherwise `run` installs the reactor of the apps
            on_nats = "asyncio" if ends.get("nats") else None
            install_reactor(reactor or on_nats, uvloop=uvloop)  # before a user's module installs another by import
        set_up_logging(log_level, log_format)  # before the modules log
        _warn_of_variables(click.get_current_context().command)
        loaded = [load(target, app_dir=app_dir, factory=factory) for target in apps]
        code = run(
            loaded,
            **ends,
            reactor=reactor,
            uvloop=uvloop,
            seconds=seconds,
            max_messages=max_messages,
            drain_timeout=drain_timeout,
            log_level=log_level,
            log_format=log_format,
        )
    except SetupError as error:
        fail_of_setup(error)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    raise SystemExit(code)


def _warn_of_variables(command: click.Command) -> None:
    """Log a warning with the names of unknown ``ZROUTE_`` variables.

    The options of ``zroute run`` have all variables that zroute reads; those of other commands are among them.
    """
    known = {str(parameter.envvar) for parameter in command.params if parameter.envvar}
    unknown = sorted(name for name in os.environ if name.upper().startswith("ZROUTE_") and name not in known)
    if unknown:
        names = "; ".join(f"{name}{did_you_mean(name.upper(), known)}" for name in unknown)
        _log.warning("unknown environment variables, which have no effect on zroute: %s", names)


def _without_reload(argv: Sequence[str]) -> list[str]:
    """Return the arguments after ``run`` for the child, without ``--reload``."""
    after = argv[list(argv).index("run") + 1 :]
    return [argument for argument in after if argument != "--reload"]


def _folders(apps: Iterable[str], app_dir: str) -> list[Path]:
    """Return the folders to watch: ``--app-dir``, and the folders of apps outside it."""
    first = Path(app_dir).resolve()
    found = dict.fromkeys([first, *(_folder(app.partition(":")[0], first) for app in apps)])
    return [folder for folder in found if folder == first or not folder.is_relative_to(first)]


def _folder(name: str, app_dir: Path) -> Path:
    """Return the folder of the module ``name``, which may also be a path.

    For a module in a package, return the folder of the outermost package.
    """
    if name.endswith(".py") or "/" in name:
        path = Path(app_dir, name).resolve()
        folder = path if path.is_dir() else path.parent
        while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
            folder = folder.parent
        return folder
    top = name.partition(".")[0]
    if (app_dir / top).is_dir() or (app_dir / f"{top}.py").is_file():
        return app_dir
    spec = find_spec(top) if top else None  # imports nothing, because `top` has no parent package
    return Path(spec.origin).parent if spec and spec.has_location and spec.origin else app_dir


def _refuse_repeated(ends: EndpointOptions) -> None:
    """Raise a usage error if an endpoint is given twice.

    Otherwise, messages of this endpoint would arrive twice.
    """
    try:
        parse_ends({side.name: map(str, ends.get(side.name) or ()) for side in SIDES})
    except EndpointError as error:
        raise click.UsageError(str(error)) from error
