"""Addresses of NATS servers: parsing, and texts without passwords.

An address is ``nats://[user:password@|token@]host[:port]``, or ``tls://…`` to insist on TLS. The text of a `Server`,
which log lines and errors show, never contains the password or the token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import attrs

from zroute.endpoints import Cluster
from zroute.errors import EndpointError
from zroute.logs import printable

__all__ = ["Server", "check_client", "discovered", "is_nats", "masked", "parse_cluster", "parse_servers"]

PORT: Final = 4222
"""The port of an address without a port."""

DISCOVERED_MAX: Final = 1_000
"""The maximum number of servers that are accepted from another server."""

_SCHEMES = ("nats", "tls")
_SECRET = re.compile(r"//[^/\s,]*@")
_EXAMPLE = "expected nats://host:4222 or tls://host:4222, and commas between several"


@attrs.frozen
class Server:
    """The address of a server, and the credentials for it.

    Attributes:
        host: The host name or address, without brackets.
        port: The TCP port.
        tls: True to refuse a connection without TLS. With False, the server decides.
        user: The name of the user, or None.
        password: The password of the user, or None.
        token: The token that replaces user and password, or None.
        tls_name: The name in the server's certificate, or None for the host.
    """

    host: str
    port: int = PORT
    tls: bool = False
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    tls_name: str | None = None

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """Host and port, as they are written in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_nats(endpoint: str) -> bool:
    """Return True if an endpoint is the address of a NATS server."""
    return endpoint.startswith(("nats://", "tls://"))


def masked(text: str) -> str:
    """Return a text in which ``***`` replaces the credentials of all URLs."""
    return _SECRET.sub("//***@", text)


def parse_servers(given: str | Iterable[str]) -> tuple[Server, ...]:
    """Return the servers of one or several addresses, without doubles.

    Args:
        given: An address, several with commas between them, or a list of addresses.

    Raises:
        EndpointError: An address is invalid, or there is none. The error does not show passwords.
    """
    texts = given.split(",") if isinstance(given, str) else list(given)
    servers = tuple(dict.fromkeys(_server(text.strip()) for text in texts if text.strip()))
    if not servers:
        raise EndpointError(f"no address of a NATS server: {_EXAMPLE}", endpoint=None)
    return servers


def parse_cluster(given: str | Iterable[str] | None, creds: str | Path | None = None) -> Cluster | None:
    """Return the cluster with these addresses; None without addresses.

    Raises:
        EndpointError: An address is invalid, or there is a file of credentials without an address.
    """
    if creds is not None and (not isinstance(creds, str | Path) or not str(creds)):
        raise EndpointError(f"nats_creds={creds!r}: expected a path, such as 'desk.creds'")
    if given is None:
        if creds is not None:
            raise EndpointError(f"nats_creds={str(creds)!r} has no effect without nats: {_EXAMPLE} in nats=")
        return None
    texts = given.split(",") if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise EndpointError(f"nats={given!r}: {_EXAMPLE}")
    servers = parse_servers(texts)
    address = ",".join(map(str, servers))
    return Cluster(",".join(text.strip() for text in texts), address, None if creds is None else Path(creds))


def check_client(cluster: Cluster) -> None:
    """Raise EndpointError if the client of NATS is not installed."""
    if find_spec("nats") is None:
        raise EndpointError(
            f"{cluster.address}: the client of NATS is not installed: pip install 'zroute[nats]'",
            endpoint=cluster.address,
        )


def _server(text: str) -> Server:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _invalid(text, str(error) if "port" in str(error).lower() else "malformed") from None
    if parts.scheme in ("ws", "wss"):
        raise _invalid(text, "WebSockets are not supported")
    if parts.scheme not in _SCHEMES:
        raise _invalid(text, "no nats:// or tls:// at its beginning")
    if not host or not text.isprintable() or " " in text:
        raise _invalid(text, "no host" if not host else "white space")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _invalid(text, "a path after the port")
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    token = user if user and password is None else None
    return Server(
        host,
        PORT if port is None else port,
        parts.scheme == "tls",
        None if token or not user else user,
        password,
        token,
    )


def _invalid(text: str, fault: str) -> EndpointError:
    shown = masked(printable(text, 200))
    return EndpointError(f"address {shown!r} of a NATS server is invalid: {masked(fault)}; {_EXAMPLE}", endpoint=shown)


def discovered(addresses: Any, by: Server) -> tuple[Server, ...]:
    """Return the servers that another server has named.

    They get the credentials of the server ``by``. Invalid addresses are ignored.
    """
    found: dict[Server, None] = {}
    for address in addresses[:DISCOVERED_MAX] if isinstance(addresses, list) else ():
        try:
            parts = urlsplit(f"//{address}")
            host, port = parts.hostname, parts.port
        except ValueError:
            continue
        if host and isinstance(address, str) and address.isprintable() and parts.username is None:
            name = by.tls_name or by.host
            # The certificate of a cluster names its servers, not their addresses.
            tls_name = name if re.fullmatch(r"[\d.]+|.*:.*", host) else None
            found[attrs.evolve(by, host=host, port=PORT if port is None else port, tls_name=tls_name)] = None
    return tuple(found)
