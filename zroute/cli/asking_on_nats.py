"""The client behind ``zroute request`` with an endpoint on NATS.

An app sends its requests in the same way; see `zroute.nats.requests`. If no app answers the topic, the servers say so
at once, and the command ends. If no NATS server is connected, the command waits for one, up to its timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from zroute.cli.asking import MAX_REPLY, Asking, Question, run_asking
from zroute.cli.listening import say
from zroute.cli.showing import Body, one_line
from zroute.endpoints import Cluster
from zroute.errors import EndpointError, NoServerError, NotRunningError, RequestTimeoutError
from zroute.nats.servers import check_client, parse_servers
from zroute.options import frame_limit
from zroute.requests.client import Client
from zroute.runtime.exit_codes import EXIT_ENDPOINT, EXIT_FAILED
from zroute.runtime.runner import install_reactor
from zroute.stats import Stats

if TYPE_CHECKING:
    from zroute.nats.requests import NatsRequests

__all__ = ["ask_on_nats"]

_LINGER = 1.0
"""The maximum time in seconds to send a cancellation to the server."""


def ask_on_nats(cluster: Cluster, question: Question, show: Callable[[Body], None]) -> int:
    """Send a request to an app on NATS, and show the replies.

    Args:
        cluster: The servers.
        question: The request.
        show: Prints a reply.

    Returns:
        The exit code of `run_asking`. It is also 1 if no app answers the topic, and 5 if the servers do not accept this
        client.

    Raises:
        EncodeError: NATS does not carry a header, or so large a body.
        TopicError: NATS does not deliver messages of the topic.
    """
    return run_asking(_AskingOnNats(install_reactor("asyncio"), question, show, cluster))


class _AskingOnNats(Asking):
    """A request to an app on NATS."""

    def __init__(self, reactor: Any, question: Question, show: Callable[[Body], None], cluster: Cluster) -> None:
        super().__init__(reactor, question, show)
        self._cluster = cluster
        self._requests: NatsRequests | None = None

    async def connect(self, client: Client) -> None:
        """Begin to connect; the request waits for a NATS server. See `Asking`."""
        check_client(self._cluster)
        from zroute.nats.client import ClientOptions
        from zroute.nats.requests import NatsRequests

        await deferLater(self.reactor, 0)  # asyncio's loop runs only in the next turn
        servers, name = parse_servers(self._cluster.servers), click.get_current_context().command_path
        options = ClientOptions(servers, name, self._cluster.creds, max_message=frame_limit(MAX_REPLY))
        requests = NatsRequests(self.reactor, options, Stats())
        requests.open(client, None)
        requests.start().addErrback(self._refused)
        self._requests = requests

    def _refused(self, failure: Failure) -> None:
        """End the command, because the servers do not accept this client."""
        error = failure.value
        if isinstance(error, NotRunningError):  # the command ends before a server has answered
            return
        if isinstance(error, EndpointError):
            say(error.text)
            self.code = EXIT_ENDPOINT
        else:
            self.failure = failure
        self.cancel()

    def fault(self, error: NoServerError | RequestTimeoutError) -> tuple[str, int]:
        """Return the line for a topic without an app, or for a missing answer.

        See `Asking`.
        """
        server = self._requests.server if self._requests is not None else None
        if server is not None and isinstance(error, NoServerError):
            return one_line(str(error)), EXIT_FAILED
        return self.late(error, server or self._cluster.address)

    async def disconnect(self) -> None:
        """Disconnect from the NATS servers; see `Asking`."""
        if self._requests is not None:
            await self._requests.close(_LINGER)
