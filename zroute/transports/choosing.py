"""The choice of a transport by the endpoints of an app."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zroute.endpoints import Endpoint
from zroute.errors import EndpointError
from zroute.transport import Transport, TransportRequest

__all__ = ["factory_for"]

_ZEROMQ = ("tcp", "ipc", "inproc")


def factory_for(endpoints: Iterable[Endpoint]) -> Callable[[TransportRequest], Transport]:
    """Return the function that creates the transport for these endpoints.

    The library of a transport is loaded here, when an app with such endpoints starts. An app therefore needs only the
    library of its own transport.

    Raises:
        EndpointError: No transport supports endpoints of this kind.
    """
    for endpoint in endpoints:
        kind = endpoint.address.partition("://")[0]
        if kind not in _ZEROMQ:
            raise EndpointError(
                f"no transport has '{kind}' endpoints: use one of {', '.join(_ZEROMQ)}", endpoint=str(endpoint)
            )
    from zroute.transports.zeromq import ZmqTransport

    return ZmqTransport
