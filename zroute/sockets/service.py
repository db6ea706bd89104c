"""Run a connection as a service of a Twisted program.

See `twisted.application.service`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.application.service import Service

from zroute.endpoints import Endpoint
from zroute.options import LINGER_ABORT

__all__ = ["ConnectionService"]


class _Connection(Protocol):
    def open(self, endpoint: Endpoint | str) -> str: ...

    def close(self, linger: int | None = None) -> None: ...


C = TypeVar("C", bound=_Connection)


class ConnectionService(Service, Generic[C]):
    """Opens a connection when the service starts, and closes it at the stop.

    For example:

        service = ConnectionService(lambda: PullConnection(reactor, work), "tcp://127.0.0.1:5557")
        service.setServiceParent(application)

    Args:
        make: A function without arguments that returns a new connection. The function is called on each start. The
            attribute ``connection`` contains the result until the stop.
        endpoints: The endpoints to open on each start.
    """

    def __init__(self, make: Callable[[], C], *endpoints: Endpoint | str) -> None:
        self._make = make
        self._endpoints = endpoints
        self.connection: C | None = None

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Create the connection and open its endpoints.

        Raises:
            EndpointError: An endpoint can't be opened. The connection is closed again.
        """
        connection = self._make()
        try:
            for endpoint in self._endpoints:
                connection.open(endpoint)
        except BaseException:
            connection.close(LINGER_ABORT)
            raise
        self.connection = connection
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> None:  # noqa: N802  # Twisted's name
        """Close the connection; queued messages are sent in the background.

        The option ``linger`` limits the time for sending these messages.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        if self.connection is not None:
            self.connection.close()
            self.connection = None
