"""``zroute proxy``: forward from many publishers to many subscribers."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import click

from zroute.cli.options import EndpointType, access_options
from zroute.endpoints import Access, Endpoint
from zroute.logs import FORMATS, LEVELS, set_up_logging
from zroute.options import IPC_MODE, MAX_MESSAGE, SENT_MAX
from zroute.runtime.exit_codes import EXIT_ENDPOINT, EXIT_FAILED
from zroute.stats import refusals

if TYPE_CHECKING:
    from zroute.sockets.proxy import Proxy

__all__ = ["command"]

_log = logging.getLogger("zroute")


class FileMode(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The mode of a file in octal digits, such as 660."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the mode as a number."""
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self.fail(f"{value!r} is not the mode of a file: expected three octal digits, such as 660", param, ctx)
        return mode


@click.command("proxy")
@click.argument("front", type=EndpointType(bind=True))
@click.argument("back", type=EndpointType(bind=True))
@click.option(
    "--max-message",
    type=click.IntRange(1, 2_000_000_000),
    default=MAX_MESSAGE,
    show_default=True,
    metavar="BYTES",
    help="Disconnect publishers that send bodies over BYTES, like Limits(max_message=…) in apps.",
)
@click.option(
    "--send-queue",
    type=click.IntRange(1, 1_000_000),
    default=SENT_MAX,
    show_default=True,
    metavar="N",
    help="Maximum number of waiting messages per subscriber. The proxy drops further messages.",
)
@click.option(
    "--ipc-mode",
    type=FileMode(),
    default=f"{IPC_MODE:o}",
    show_default=True,
    metavar="MODE",
    help="Mode of bound ipc paths, such as 660, which decides who may connect.",
)
@access_options
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(FORMATS), default="auto", show_default=True)
def command(
    front: Endpoint,
    back: Endpoint,
    max_message: int,
    send_queue: int,
    ipc_mode: int,
    access: Access,
    log_level: str,
    log_format: str,
) -> None:
    """Forward messages from many publishers to many subscribers, until a signal.

    Publishers connect to FRONT, with App(pub="connect:tcp://…"). Subscribers connect to BACK, with
    App(sub="tcp://…"). The proxy binds both endpoints, but connects to an endpoint that begins with
    connect:, for example the BACK of another proxy.

    For example: zroute proxy tcp://127.0.0.1:5559 tcp://127.0.0.1:5560
    """
    if front.address == back.address and "*" not in front.address:
        raise click.UsageError(f"FRONT and BACK are both {front.address}: use a different endpoint for each")
    from zroute.runtime.runner import install_reactor
    from zroute.runtime.signals import StopSignals, run_reactor

    set_up_logging(log_level, log_format)
    reactor = install_reactor(None)
    forwarding = _Forwarding(reactor, click.get_current_context().command_path, ipc_mode)
    signals = StopSignals(lambda: reactor.callFromThread(forwarding.stop), lambda number: os._exit(128 + number))
    run_reactor(reactor, signals, forwarding.start, (front, back), max_message, send_queue, access)
    raise SystemExit(forwarding.code)


class _Forwarding:
    """The run of a proxy.

    ``name`` is the first word of the log lines, and ``ipc_mode`` the mode of bound ipc paths.
    """

    def __init__(self, reactor: Any, name: str, ipc_mode: int) -> None:
        self._ipc_mode = ipc_mode
        self.code = 0
        self._reactor = reactor
        self._name = name
        self._proxy: Proxy | None = None

    def start(self, endpoints: tuple[Endpoint, Endpoint], max_message: int, send_queue: int, access: Access) -> None:
        """Open the sockets, and start to forward messages, in the running reactor."""
        from zroute.errors import EndpointError
        from zroute.sockets.proxy import Proxy

        proxy = self._proxy = Proxy(
            self._reactor, self._name, self._failed, max_message=max_message, send_queue=send_queue, access=access
        )
        for end, side in ((proxy.front, "FRONT"), (proxy.back, "BACK")):
            end.endpoint_option, end.ipc_mode = side, self._ipc_mode
            if _log.isEnabledFor(logging.DEBUG):
                end.watch(partial(_log.debug, "%s: %s %s", self._name, side))
        proxy.front.size_option, proxy.back.size_option = f"--max-message {max_message}", None
        try:
            for endpoint in endpoints:
                _check(endpoint)
            addresses = proxy.open(*endpoints)
        except EndpointError as error:
            _log.error("%s", error)
            self._end(EXIT_ENDPOINT)
            return
        for endpoint, resolved, whom in zip(endpoints, addresses, ("publishers", "subscribers"), strict=True):
            how = "bound to" if endpoint.bind else "connects to"
            _log.info("%s: for %s, %s %s", self._name, whom, how, resolved)
            if (warning := access.exposure(endpoint.resolved(resolved))) is not None:
                _log.warning("%s: %s", self._name, warning)
        proxy.start()

    def stop(self) -> None:
        """Send queued messages, log the counters, and stop the reactor."""
        proxy = self._end(0)
        if proxy is not None:
            facts = attrs.asdict(proxy.forwarded) | refusals(proxy.stats)
            text = ", ".join(f"{name} {number}" for name, number in facts.items())
            _log.info("%s: %s", self._name, text, extra={"app": self._name, **facts})

    def _failed(self, error: BaseException) -> None:
        _log.error("%s: libzmq's proxy has ended: %s", self._name, error)
        self._end(EXIT_FAILED)

    def _end(self, code: int) -> Proxy | None:
        """Close the proxy, and then stop the reactor; return the proxy if it was open."""
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            self.code = code
            proxy.close().addBoth(lambda _: self._reactor.stop())
        return proxy


def _check(endpoint: Endpoint) -> None:
    """Raise EndpointError for an endpoint that other processes can't reach."""
    if endpoint.address.startswith("inproc:"):
        from zroute.errors import EndpointError

        raise EndpointError(
            f"{endpoint.address} can only be reached inside its own process: use tcp:// or ipc://",
            endpoint=str(endpoint),
        )
