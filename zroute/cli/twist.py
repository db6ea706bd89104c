"""The plugin of twist and twistd: ``twist zroute module:app``.

Twisted's program sets up the reactor, the log, the pid file and the user. The plugin loads the apps like ``zroute
run``, and runs one service for each app.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from twisted.application.service import MultiService
from twisted.internet.error import ReactorNotRunning
from twisted.python import usage
from twisted.python.failure import Failure

from zroute.cli.loading import fail_of_setup, load
from zroute.cli.options import ACCESS, DURATION, INSECURE, NATS, EndpointType, fault_of_several
from zroute.endpoints import SIDES, EndpointOptions, Side
from zroute.errors import EndpointError, SetupError, UsageError
from zroute.nats.servers import parse_cluster
from zroute.options import DRAIN_TIMEOUT
from zroute.planning.plan import Plan, reactor_kind
from zroute.runtime.exit_codes import EXIT_ENDPOINT, EXIT_FAILED
from zroute.runtime.run import exit_code
from zroute.runtime.runner import REACTORS, install_reactor
from zroute.runtime.service import AppService

__all__ = ["Options", "makeService"]


def _seconds(text: str) -> Any:
    return _converted(DURATION, text)


def _converted(kind: click.ParamType, text: str) -> Any:  # type: ignore[type-arg]  # generic in newer click only
    try:
        return kind.convert(text, None, None)
    except click.BadParameter as error:
        raise ValueError(error.message) from error


class Options(usage.Options):
    """The options of the plugin, with the same names as in ``zroute run``."""

    synopsis = "[options] MODULE[:APP]..."
    optFlags = (  # noqa: N815  # Twisted's name
        ("factory", None, "APP is the name of a function that returns the App."),
        ("insecure", None, INSECURE),
    )
    optParameters = (  # noqa: N815  # Twisted's name
        ("app-dir", None, ".", "Look for MODULE in this folder first."),
        (
            "drain-timeout",
            None,
            DRAIN_TIMEOUT,
            "The maximum time that a stop waits for unfinished handlers, such as 10s or 500ms.",
            _seconds,
        ),
        *((flag.removeprefix("--"), None, None, text) for flag, _, text in ACCESS + NATS),
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        self["ends"] = EndpointOptions()

    def parseArgs(self, *apps: str) -> None:  # noqa: N802  # Twisted's name
        """Store the names of the apps."""
        self["apps"] = apps

    def postOptions(self) -> None:  # noqa: N802  # Twisted's name
        """Check the options that depend on each other."""
        apps = self["apps"]
        if not apps:
            raise usage.UsageError("no app is named: write MODULE:APP, for example quotes:app")
        late = next((name for name in apps if name.startswith("-")), None)
        if late is not None:
            raise usage.UsageError(f"the option {late} comes after an app: write all options before the apps")
        if (twice := next((name for name in apps if apps.count(name) > 1), None)) is not None:
            raise usage.UsageError(
                f"{twice} is given twice, but a process can run each app only once: give each app once"
            )
        ends: EndpointOptions = self["ends"]
        ends["keys"], ends["peers"], ends["insecure"] = self["keys"], self["peers"], bool(self["insecure"]) or None
        ends["nats"], ends["nats_creds"] = self["nats"], self["nats-creds"]
        try:
            parse_cluster(self["nats"])  # the credentials may belong to the servers of the app
        except EndpointError as error:
            raise usage.UsageError(f"--nats: {error}") from error
        fault = fault_of_several(apps, ends)
        if fault is not None:
            raise usage.UsageError(fault)


def _endpoint_option(side: Side) -> Callable[[Options, str], None]:
    """Return the method of an option that adds endpoints of one side."""

    def add(options: Options, endpoint: str) -> None:
        ends: EndpointOptions = options["ends"]
        try:
            ends[side.name] = (*(ends.get(side.name) or ()), _converted(EndpointType(bind=side.binds), endpoint))
        except ValueError as error:
            raise usage.UsageError(f"{side.flag}: {error}") from error

    add.__doc__ = side.help
    return add


for _side in SIDES:
    setattr(Options, f"opt_{_side.name}", _endpoint_option(_side))


def makeService(options: Options) -> Apps:  # noqa: N802  # Twisted's name
    """Return the service that runs the apps.

    Args:
        options: the parsed options.

    Raises:
        SystemExit: an app can't be loaded or is invalid, or an endpoint is missing. The reason was printed on standard
            error. The exit codes are the same as for ``zroute run``.
    """
    how = {"app_dir": options["app-dir"], "factory": bool(options["factory"])}
    try:
        plans = [load(target, **how).compile() for target in options["apps"]]
        reactor = install_reactor(None)  # Twisted's program has already installed a reactor
        on_nats = any(plan.endpoints(**options["ends"]).nats for plan in plans)
        _check_reactor(plans, reactor, options["apps"], on_nats=on_nats)
        return Apps(plans, reactor, options["ends"], options["drain-timeout"])
    except SetupError as error:
        fail_of_setup(error)
    except UsageError as error:
        click.echo(f"zroute: {error}", err=True)
        raise SystemExit(2) from error


def _check_reactor(plans: list[Plan], reactor: Any, apps: tuple[str, ...], *, on_nats: bool) -> None:
    """Raise UsageError if the apps need a reactor of another kind than ``reactor``.

    The error names the option of Twisted's programs that selects the reactor.
    """
    command = f"twist {{}}zroute {' '.join(apps)}"
    on_asyncio = type(reactor).__module__ == REACTORS["asyncio"]
    if on_nats:
        if not on_asyncio:
            text = "NATS needs asyncio's reactor: write --reactor asyncio before zroute, as in"
            raise UsageError(f"{text} {command.format('--reactor asyncio ')!r}; twistd has the same option")
        return  # the apps themselves may need any reactor: see `AppService`
    if reactor_kind(plans) == "asyncio":
        advice = f"write {command.format('--reactor asyncio ')!r}; twistd has the same option"
    else:
        advice = f"remove --reactor asyncio, as in {command.format('')!r}"
    for plan in plans:
        plan.check_reactor(on_asyncio=on_asyncio, advice=advice)


class Apps(MultiService):
    """Runs apps, and ends the process if an app requests an exit or fails to start.

    The process then ends with the same exit code as under ``zroute run``.
    """

    def __init__(self, plans: list[Plan], reactor: Any, ends: EndpointOptions, drain_timeout: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        self._reactor = reactor
        self._code: int | None = None
        for plan in plans:
            service = AppService(plan, reactor, drain_timeout=drain_timeout, leave=self._leave, **ends)
            service.owns_pool = True
            service.setServiceParent(self)  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Start all apps.

        If an endpoint can't be opened, log that, and end the process with exit code 5.
        """
        try:
            super().startService()  # type: ignore[no-untyped-call]  # Twisted leaves it unannotated
        except EndpointError as error:
            logging.getLogger("zroute").error("%s", error)
            self._end(EXIT_ENDPOINT)
        for service in self:
            service.started.addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> None:
        """End the process. The service has already logged the error."""
        error = failure.value
        code = exit_code(error) if isinstance(error, SystemExit) else EXIT_FAILED
        self._end(EXIT_ENDPOINT if isinstance(error, EndpointError) else code)

    def _leave(self, code: int, why: str) -> None:
        if self._code is None:
            logging.getLogger("zroute").info("stopping: %s", why)
        self._end(code)

    def _end(self, code: int) -> None:
        """Stop the reactor, and end the process with the first code that is not 0."""
        if self._code is None:
            self._code = code
            atexit.register(self._exit)
            # An app may fail before the reactor runs, and only a running reactor can be stopped.
            self._reactor.callWhenRunning(self._stop_reactor)
        self._code = self._code or code

    def _stop_reactor(self) -> None:
        with suppress(ReactorNotRunning):  # other code has just stopped it
            self._reactor.stop()

    def _exit(self) -> None:
        """End the process with the stored exit code.

        Without this method, Twisted's programs would end with 0 whenever the reactor stops.
        """
        if self._code:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._code)
