"""The choice of a transport by the endpoints of an app."""

from __future__ import annotations

from collections.abc import Callable

from zroute.endpoints import Ends
from zroute.errors import EndpointError
from zroute.nats.servers import check_client
from zroute.transport import Transport, TransportRequest

__all__ = ["factory_for"]

_ZEROMQ = ("tcp", "ipc", "inproc")


def factory_for(endpoints: Ends) -> Callable[[TransportRequest], Transport]:
    """Return the function that creates the transport for these endpoints.

    The library of a transport is loaded here, when an app with such endpoints starts. An app therefore needs only the
    library of its own transport.

    Raises:
        EndpointError: No transport supports endpoints of this kind, or its library is not installed.
    """
    if endpoints.nats is not None:
        check_client(endpoints.nats)
        from zroute.transports.nats import NatsTransport

        return NatsTransport
    for endpoint in endpoints:
        kind = endpoint.address.partition("://")[0]
        if kind not in _ZEROMQ:
            raise EndpointError(
                f"no transport has '{kind}' endpoints: use one of {', '.join(_ZEROMQ)}", endpoint=str(endpoint)
            )
    from zroute.transports.zeromq import ZmqTransport

    return ZmqTransport
