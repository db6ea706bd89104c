"""A connection as a part of a Twisted program (`twisted.application.service`)."""

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
    """Opens a connection when the service starts, and closes it when it stops::

        service = ConnectionService(lambda: PullConnection(reactor, work), "tcp://127.0.0.1:5557")
        service.setServiceParent(application)

    ``make`` makes the connection at each start; until the stop it is ``connection``. An endpoint that can't be
    opened is an EndpointError at the start, and nothing is left open.
    """

    def __init__(self, make: Callable[[], C], *endpoints: Endpoint | str) -> None:
        self._make = make
        self._endpoints = endpoints
        self.connection: C | None = None

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Make the connection and open its endpoints."""
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
        """Close the connection; what it still has to send is sent in the background, for its linger."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self.connection is not None:
            self.connection.close()
            self.connection = None
