"""An endpoint: a ZeroMQ address that is bound or connected.

Parses and checks the texts of endpoints (zmq_tcp(7), zmq_ipc(7), zmq_inproc(7)). Opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from zroute.errors import EndpointError

__all__ = ["Endpoint", "parse_endpoint", "parse_endpoints"]

_TRANSPORTS = ("tcp", "ipc", "inproc")
_TCP = re.compile(r"(?:[^;]+;)?(?P<host>\[[^\]]+\]|[^:\[\];]+):(?P<port>\d+|\*)")
_LOOPBACK = re.compile(r"127(\.\d+){1,3}|localhost|lo0?|\[::1\]")  # lo and lo0 are names of the loopback interface
_IPC_PATH_MAX = 107  # sun_path of unix(7) holds 108 bytes with the closing NUL


@attrs.frozen
class Endpoint:
    """A ZeroMQ address, and True to bind it or False to connect to it.

    ``address`` is in libzmq's form, for example ``tcp://127.0.0.1:5555``.
    """

    address: str
    bind: bool

    def __str__(self) -> str:
        return f"{'bind' if self.bind else 'connect'}:{self.address}"

    @property
    def is_open(self) -> bool:
        """True if other hosts can connect.

        That is an address bound over tcp that is not only of the loopback interface.
        """
        transport, _, rest = self.address.partition("://")
        return self.bind and transport == "tcp" and not _LOOPBACK.fullmatch(rest.rpartition(":")[0])


def parse_endpoint(text: str, *, bind: bool) -> Endpoint:
    """Return the endpoint in a text ``[bind:|connect:]transport://address``.

    Args:
        text: The text of the endpoint.
        bind: True to bind if the text begins with neither ``bind:`` nor ``connect:``, False to connect.

    Raises:
        EndpointError: libzmq would refuse the address, or accept it and never deliver a message.
    """
    if not isinstance(text, str):
        raise EndpointError(f"an endpoint is text like 'tcp://127.0.0.1:5555', not {text!r}")
    verb, colon, address = text.partition(":")
    if colon and verb in ("bind", "connect"):
        bind = verb == "bind"
    else:
        address = text
    transport, separator, rest = address.partition("://")
    if not separator:
        guess = address if ":" in address else f"127.0.0.1:{address if address.isdigit() else 5555}"
        raise _error(text, "has no transport", f"write for example 'tcp://{guess}'")
    if transport not in _TRANSPORTS:
        raise _error(text, f"has an unknown transport '{transport}'", f"use one of {', '.join(_TRANSPORTS)}")
    if not rest or any(mark.isspace() or mark == "\0" for mark in rest):
        raise _error(text, "has no usable address", f"write an address after {transport}://, without white space")
    if transport == "tcp":
        _check_tcp(text, rest, bind)
    elif transport == "ipc":
        _check_ipc(text, rest, bind)
    return Endpoint(address, bind)


def parse_endpoints(given: str | Iterable[str], *, bind: bool) -> tuple[Endpoint, ...]:
    """Return one or several endpoints, in the order given.

    Raises:
        EndpointError: An endpoint is invalid, or given twice.
    """
    texts = (given,) if isinstance(given, str) else tuple(given)
    endpoints = tuple(parse_endpoint(text, bind=bind) for text in texts)
    for index, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:index] and "*" not in endpoint.address:  # each * is a different port
            raise _error(texts[index], "is given twice", "give it once, since each message would arrive twice")
    return endpoints


def _check_tcp(text: str, rest: str, bind: bool) -> None:
    match = _TCP.fullmatch(rest)
    if match is None:
        raise _error(text, "is not 'tcp://host:port'", "write for example 'tcp://127.0.0.1:5555'")
    host, port = match["host"], match["port"]
    if port != "*" and int(port) > 65_535:
        raise _error(text, f"has port {port}", "a port is at most 65535")
    if not bind and (host == "*" or port in ("*", "0")):
        raise _error(
            text, "connects to '*' or to no port", "give the host and port to connect to, or write 'bind:' before it"
        )


def _check_ipc(text: str, rest: str, bind: bool) -> None:
    if len(rest.encode()) > _IPC_PATH_MAX:
        raise _error(text, f"has a path of {len(rest.encode())} bytes", f"a socket's path is at most {_IPC_PATH_MAX}")
    if rest == "*" and not bind:
        raise _error(text, "connects to '*'", "give the path to connect to")


def _error(text: str, wrong: str, remedy: str) -> EndpointError:
    return EndpointError(f"endpoint {text!r} {wrong}: {remedy}", endpoint=text)
