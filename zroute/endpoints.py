"""Endpoints: ZeroMQ addresses that are bound or connected, by side of an app.

This module parses and checks the texts of endpoints (zmq_tcp(7), zmq_ipc(7), zmq_inproc(7)). It opens no sockets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import attrs

from zroute.errors import EndpointError

__all__ = [
    "LOOP",
    "NO_KEYS",
    "SIDES",
    "Access",
    "Cluster",
    "Endpoint",
    "EndpointOptions",
    "Ends",
    "Form",
    "ResolvedAddresses",
    "Side",
    "parse_access",
    "parse_endpoint",
    "parse_endpoints",
    "parse_ends",
]

LOOP = "inproc://zroute-"
"""The beginning of the addresses inside an app without endpoints."""

_TRANSPORTS = ("tcp", "ipc", "inproc")
# zmq_tcp(7): a source address and a semicolon may precede the address to connect to.
_TCP = re.compile(r"(?:[^;]+;)?(?P<host>\[[^\]]+\]|[^:\[\];]+):(?P<port>\d+|\*)")
_NUMERIC = re.compile(r"\*|[\d.]+|\[[^\]]*\]")
_LOOPBACK = re.compile(r"127(\.\d+){1,3}|\[::ffff:127(\.\d+){3}\]|\[::1\]|localhost|lo0?")  # lo, lo0: interfaces
_PEER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `zroute.sockets.keys.check_name`
_IPC_PATH_MAX = 107  # sun_path of unix(7) holds 108 bytes with the closing NUL


class Form(Protocol):
    """The stated form of messages: `zroute.messages.frames.Frames`."""

    @property
    def filters(self) -> bool:
        """True if publishers can filter by topic, which starts the first part."""

    @property
    def fixed_topic(self) -> bytes | None:
        """The topic of all messages, or None if each message contains its topic."""

    def parser(self, max_message: int, place: str) -> Callable[[tuple[bytes, ...]], Any]:
        """Return the function that extracts topic and body from the parts of a message."""


@attrs.frozen
class Endpoint:
    """A ZeroMQ address to bind or to connect to.

    ``address`` is in libzmq's form, for example ``tcp://127.0.0.1:5555``. ``bind`` is True to bind the address, and
    False to connect to it. ``form`` is the specified form of received messages; with None, the wires of zroute are
    recognised. ``peer`` is the name of the key that the program at this address must have, or None.
    """

    address: str
    bind: bool
    form: Form | None = None
    peer: str | None = None

    def __str__(self) -> str:
        return f"{'bind' if self.bind else 'connect'}:{f'{self.peer}@' if self.peer else ''}{self.address}"

    @property
    def is_open(self) -> bool:
        """True if other hosts can connect.

        Such an endpoint binds a tcp address outside the loopback interface. A host name may be resolved to a loopback
        address, so after the bind, check the endpoint that `resolved` returns.
        """
        transport, _, rest = self.address.partition("://")
        return self.bind and transport == "tcp" and not _LOOPBACK.fullmatch(rest.rpartition(":")[0])

    @property
    def is_surely_open(self) -> bool:
        """True if other hosts can connect, and the address shows that before the bind.

        The address then has an IP address or ``*`` instead of a host name or an interface.
        """
        return self.is_open and bool(_NUMERIC.fullmatch(self.address.removeprefix("tcp://").rpartition(":")[0]))

    def resolved(self, address: str) -> Endpoint:
        """Return this endpoint with the address that its socket has bound.

        The address before the bind may be a host name or contain ``*``.
        """
        return attrs.evolve(self, address=address)


SideName = Literal["sub", "pub", "rep", "req", "jobs", "work"]


@attrs.frozen
class Side:
    """One use of endpoints by an app, such as publishing.

    Each side is a parameter of ``App(…)`` and an attribute of `Ends`.

    Attributes:
        name: The name of the parameter.
        binds: True if endpoints of this side bind unless they begin with ``connect:``; False if they connect unless
            they begin with ``bind:``.
        verb: The action of the app at these endpoints, for log lines.
        action: The same action with its preposition, for help texts.
    """

    name: SideName
    binds: bool
    verb: str
    action: str

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that `zroute run` reads."""
        return f"ZROUTE_{self.name.upper()}"

    @property
    def help(self) -> str:
        """The help text of the option."""
        return f"{self.action} ENDPOINT instead of the app's endpoints. Can be repeated."


SIDES = (
    Side("sub", False, "subscribes", "Subscribe to"),
    Side("pub", True, "publishes", "Publish to"),
    Side("rep", True, "answers requests", "Answer requests at"),
    Side("req", False, "sends requests", "Send requests to"),
    Side("jobs", True, "hands out jobs", "Hand out jobs at"),
    Side("work", False, "takes jobs", "Take jobs from"),
)
"""All sides, in the order of the attributes of `Ends`."""


@attrs.frozen
class Access:
    """Who may connect to the endpoints of an app.

    Attributes:
        keys: The secret file of the app's own key, or None for connections without encryption.
        peers: The directory with the public keys of peers, ``"anyone"``, or None for the folder ``peers`` beside
            ``keys``.
        insecure: True if the app may bind addresses that other hosts can reach, without keys.
    """

    keys: Path | None = None
    peers: Path | Literal["anyone"] | None = None
    insecure: bool = False

    @property
    def options(self) -> EndpointOptions:
        """The same as options that replace those of an app."""
        return EndpointOptions(keys=self.keys, peers=self.peers, insecure=self.insecure)

    @property
    def directory(self) -> Path | None:
        """The directory with the public keys of peers; None without keys."""
        if self.keys is None:
            return None
        return self.peers if isinstance(self.peers, Path) else self.keys.parent / "peers"

    def check(self, endpoint: Endpoint) -> None:
        """Raise EndpointError if an endpoint does not fit the keys.

        With keys, an endpoint that connects must name its peer. Without keys, no endpoint may name a peer. This method
        opens no key file.
        """
        if self.keys is None and endpoint.peer is not None:
            raise EndpointError(
                f"endpoint {str(endpoint)!r} names the peer {endpoint.peer!r}, but the app has no key: create one with "
                "zroute keys new NAME, and set keys='keys/NAME.key_secret'",
                endpoint=str(endpoint),
            )
        inside = endpoint.address.startswith("inproc://")
        if self.directory is not None and endpoint.peer is None and not endpoint.bind and not inside:
            names = sorted(path.stem for path in self.directory.glob("*.key"))
            name = names[0] if len(names) == 1 else "NAME"
            known = ", ".join(names)
            raise EndpointError(
                f"endpoint {str(endpoint)!r} does not name its peer, but the app has keys: write the name of the "
                f"peer's key before the address, as in 'connect:{name}@{endpoint.address}' for "
                f"{self.directory}/{name}.key" + (f" (names there: {known})" if len(names) > 1 else ""),
                endpoint=str(endpoint),
            )

    def check_open(self, endpoint: Endpoint) -> None:
        """Raise EndpointError for an endpoint that other hosts can reach.

        An app with keys, or with ``insecure``, may have such endpoints.
        """
        if self.keys is None and not self.insecure and endpoint.is_open:
            raise EndpointError(
                f"{endpoint.address} is open to the network, and without keys any program that reaches it can receive "
                "and send everything. Use one of: keys='keys/NAME.key_secret' (see zroute keys new), an address of "
                "127.0.0.1, or insecure=True (--insecure, ZROUTE_INSECURE=1)",
                endpoint=str(endpoint),
            )

    def exposure(self, endpoint: Endpoint) -> str | None:
        """Return a warning if any program in the network can connect, or None."""
        if not endpoint.is_open or (self.keys is not None and self.peers != "anyone"):
            return None
        if self.keys is None:
            return f"{endpoint.address} is reachable from the network, without authentication"
        return (
            f"{endpoint.address} is reachable from the network, and any program may connect (peers='anyone'): the "
            "connections are encrypted, but not authenticated"
        )


NO_KEYS = Access()
"""The default of an app: it has no keys, and binds only addresses that other hosts can't reach."""


@attrs.frozen
class Cluster:
    """The NATS servers that an app uses instead of ZeroMQ endpoints.

    Attributes:
        servers: The addresses of the servers, with credentials, separated by commas.
        address: The same without credentials, for log lines and errors.
        creds: The file of credentials, or None.
        echo: True if the app receives its own messages.
        asks_itself: True if the app may answer its own requests.
        publishes_anything: True if an app without a publication is a publisher, whose topics are not known before.
    """

    servers: str = attrs.field(repr=False)
    address: str
    creds: Path | None = None
    echo: bool = True
    asks_itself: bool = True
    publishes_anything: bool = True


class EndpointOptions(TypedDict, total=False):
    """Endpoints and keys that replace the app's own.

    An option that is absent or None keeps the value of the app.
    """

    sub: tuple[Endpoint, ...] | None
    """Endpoints to receive from, instead of the apps' own. Default: None, which keeps the apps' endpoints."""
    pub: tuple[Endpoint, ...] | None
    """Endpoints to publish to, instead of the apps' own. Default: None, which keeps the apps' endpoints."""
    rep: tuple[Endpoint, ...] | None
    """Endpoints to answer requests at, instead of the apps' own. Default: None, which keeps the apps' endpoints."""
    req: tuple[Endpoint, ...] | None
    """Endpoints to send requests to, instead of the apps' own. Default: None, which keeps the apps' endpoints."""
    jobs: tuple[Endpoint, ...] | None
    """Endpoints to hand out jobs at, instead of the apps' own. Default: None, which keeps the apps' endpoints."""
    work: tuple[Endpoint, ...] | None
    """Endpoints to take jobs from, instead of the apps' own. Default: None, which keeps the apps' endpoints."""
    keys: str | Path | None
    """The secret file of the apps' key, instead of their own. Default: None, which keeps the apps' keys."""
    peers: str | Path | None
    """The directory of peers, or "anyone", instead of the apps' own. Default: None, which keeps the apps' peers."""
    insecure: bool | None
    """Replaces ``insecure=`` of the apps. Default: None, which keeps the apps' own."""
    nats: str | Iterable[str] | None
    """NATS servers, instead of all endpoints and keys of the apps. Default: None, which keeps the apps' own."""
    nats_creds: str | Path | None
    """The file of credentials for NATS, instead of the apps' own. Default: None, which keeps the apps' own."""


@attrs.frozen
class Ends:
    """The endpoints of an app, by side.

    Attributes:
        sub: The endpoints to receive from.
        pub: The endpoints to publish to.
        rep: The endpoints to answer requests at.
        req: The endpoints to send requests to.
        jobs: The endpoints to hand out jobs at.
        work: The endpoints to take jobs from.
        access: Who may connect.
        nats: The NATS servers, or None on ZeroMQ. On NATS, each side that the app uses has one endpoint, the cluster.
    """

    sub: tuple[Endpoint, ...] = ()
    pub: tuple[Endpoint, ...] = ()
    rep: tuple[Endpoint, ...] = ()
    req: tuple[Endpoint, ...] = ()
    jobs: tuple[Endpoint, ...] = ()
    work: tuple[Endpoint, ...] = ()
    access: Access = NO_KEYS
    nats: Cluster | None = None

    def of(self, side: Side) -> tuple[Endpoint, ...]:
        """Return the endpoints of one side."""
        endpoints: tuple[Endpoint, ...] = getattr(self, side.name)
        return endpoints

    def __iter__(self) -> Iterator[Endpoint]:
        """Iterate over the endpoints of all sides."""
        for side in SIDES:
            yield from self.of(side)

    def __bool__(self) -> bool:
        return any(self.of(side) for side in SIDES)

    def __add__(self, other: Ends) -> Ends:
        return self.with_sides({side.name: self.of(side) + other.of(side) for side in SIDES})

    def with_sides(self, sides: Mapping[Any, tuple[Endpoint, ...]]) -> Ends:
        """Return a copy with the endpoints of some sides replaced.

        The keys of ``sides`` are the names of the sides.
        """
        given: dict[str, Any] = dict(sides)
        return attrs.evolve(self, **given)

    def replaced(self, options: EndpointOptions) -> Ends:
        """Return these endpoints and keys, with those in ``options`` replaced.

        Raises:
            EndpointError: ``peers`` is given without ``keys``.
        """
        given: dict[str, Any] = {name: ends for name, ends in options.items() if ends is not None}
        given.pop("nats", None), given.pop("nats_creds", None)  # see `Plan.endpoints`
        access = {name: given.pop(name) for name in ("keys", "peers", "insecure") if name in given}
        return attrs.evolve(self, **given, access=parse_access(self.access, **access))

    @property
    def publisher(self) -> str | None:
        """The name of the key that all publishers must have, or None."""
        names = {None if endpoint.bind else endpoint.peer for endpoint in self.sub}
        return names.pop() if len(names) == 1 and self.access.keys is not None else None

    @property
    def hears_itself(self) -> bool:
        """True if an app with these endpoints receives its own messages.

        This is the case if it publishes to an address of ``sub``. On NATS, see `Cluster.echo`.
        """
        if self.nats is not None:
            return self.nats.echo and bool(self.sub and self.pub)
        published = {endpoint.address for endpoint in self.pub}
        return any(endpoint.address in published for endpoint in self.sub)

    @property
    def clash(self) -> tuple[tuple[Side, Endpoint], tuple[Side, Endpoint]] | None:
        """Two endpoints that can't both bind, because the address is the same."""
        bound: list[tuple[Side, Endpoint]] = []
        for side in SIDES:
            for endpoint in self.of(side):
                if endpoint.bind:
                    for earlier in bound:
                        if _clash(earlier[1].address, endpoint.address):
                            return earlier, (side, endpoint)
                    bound.append((side, endpoint))
        return None

    @property
    def addresses(self) -> ResolvedAddresses:
        """The addresses as declared."""
        return ResolvedAddresses(**{side.name: tuple(each.address for each in self.of(side)) for side in SIDES})


@attrs.frozen
class ResolvedAddresses:
    """The addresses of a running app: `App.addresses`.

    Attributes:
        sub: The addresses from which the app receives, in the order of its endpoints.
        pub: The addresses to which the app publishes.
        rep: The addresses at which the app answers requests.
        req: The addresses to which the app sends requests.
        jobs: The addresses at which the app hands out jobs.
        work: The addresses from which the app takes jobs.
    """

    sub: tuple[str, ...] = ()
    pub: tuple[str, ...] = ()
    rep: tuple[str, ...] = ()
    req: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    work: tuple[str, ...] = ()

    def of(self, side: Side) -> tuple[str, ...]:
        """Return the addresses of one side."""
        addresses: tuple[str, ...] = getattr(self, side.name)
        return addresses

    def __iter__(self) -> Iterator[str]:
        """Iterate over the addresses of all sides."""
        for side in SIDES:
            yield from self.of(side)


def parse_access(
    before: Access = NO_KEYS,
    keys: str | Path | None = None,
    peers: str | Path | None = None,
    insecure: bool | None = None,
) -> Access:
    """Return ``before``, with the given values replaced.

    Raises:
        EndpointError: ``peers`` is given without ``keys``, or a value has the wrong type.
    """
    for name, value in (("keys", keys), ("peers", peers)):
        if value is not None and (not isinstance(value, str | Path) or not str(value)):
            raise EndpointError(f"{name}={value!r}: expected a path, such as {_EXAMPLES[name]!r}")
    if insecure is not None and not isinstance(insecure, bool):
        raise EndpointError(f"insecure={insecure!r}: expected True or False")
    found = Access(
        before.keys if keys is None else Path(keys),
        before.peers if peers is None else "anyone" if peers == "anyone" else Path(peers),
        before.insecure if insecure is None else insecure,
    )
    if found.peers is not None and found.keys is None:
        raise EndpointError(
            f"peers={str(found.peers)!r} has no effect without keys: create a key with zroute keys new NAME, and set "
            f"keys={_EXAMPLES['keys']!r}"
        )
    return found


_EXAMPLES = {"keys": "keys/desk.key_secret", "peers": "keys/peers"}


def parse_endpoint(text: str, *, bind: bool) -> Endpoint:
    """Parse an endpoint of the form ``[bind:|connect:][peer@]transport://address``.

    Args:
        text: The text of the endpoint.
        bind: True to bind if the text begins with neither ``bind:`` nor ``connect:``, False to connect.

    Raises:
        EndpointError: libzmq would refuse the address, or accept it and never deliver a message.
    """
    if not isinstance(text, str):
        raise EndpointError(f"an endpoint must be text such as 'tcp://127.0.0.1:5555', not {text!r}")
    verb, colon, address = text.partition(":")
    if colon and verb in ("bind", "connect"):
        bind = verb == "bind"
    else:
        address = text
    peer, at, after = address.partition("@")
    # An @ behind the transport belongs to the address, such as the abstract socket ipc://@name.
    if at and "://" not in peer:
        address = after
    else:
        peer = ""
    transport, separator, rest = address.partition("://")
    _check_place_of_peer(text, peer, address)
    if not separator:
        guess = address if ":" in address else f"127.0.0.1:{address if address.isdigit() else 5555}"
        raise _error(text, "has no transport", f"write for example 'tcp://{guess}'")
    if transport not in _TRANSPORTS:
        remedy = f"use one of {', '.join(_TRANSPORTS)}"
        if transport in ("nats", "tls"):
            remedy = f"{remedy}; servers of NATS belong in App(nats=…) or --nats"
        raise _error(text, f"has an unknown transport '{transport}'", remedy)
    if not rest or any(mark.isspace() or mark == "\0" for mark in rest):
        raise _error(text, "has no usable address", f"write an address after {transport}://, without white space")
    if transport == "tcp":
        _check_tcp(text, rest, bind)
    elif transport == "ipc":
        _check_ipc(text, rest, bind)
    if at and "://" in after:
        _check_peer(text, peer, transport, bind)
    return Endpoint(address, bind, peer=peer or None)


def parse_endpoints(given: str | Iterable[str], *, bind: bool) -> tuple[Endpoint, ...]:
    """Return one or several endpoints, in the order given.

    Raises:
        EndpointError: An endpoint is invalid or given twice, two endpoints differ only in their peers, or ``given`` is
            a mapping of endpoints to forms.
    """
    if isinstance(given, Mapping):
        raise EndpointError(
            f"expected endpoints without forms, not {dict(given)!r}: only sub= accepts a form for each endpoint. To "
            "send in a form, use wire=, as in App(pub='tcp://127.0.0.1:5556', wire=Frames(separator=b' '))"
        )
    if not isinstance(given, Iterable):
        raise EndpointError(f"expected one or several endpoints, such as 'tcp://127.0.0.1:5555', not {given!r}")
    texts = (given,) if isinstance(given, str) else tuple(given)
    endpoints = tuple(parse_endpoint(text, bind=bind) for text in texts)
    for index, endpoint in enumerate(endpoints):
        for earlier in endpoints[:index] if "*" not in endpoint.address else ():  # each * is a different port
            if endpoint == earlier:
                raise _error(
                    texts[index], "is given twice", "remove one of the two, because each message would arrive twice"
                )
            if endpoint == attrs.evolve(earlier, peer=endpoint.peer):
                wrong = f"has the address of {texts[endpoints.index(earlier)]!r}, but another peer"
                raise _error(texts[index], wrong, "remove one of the two, because the program there has one key")
    return endpoints


def parse_ends(given: Mapping[str, str | Iterable[str]]) -> Ends:
    """Parse the endpoints of all sides, given as texts by the name of the side.

    Raises:
        EndpointError: An endpoint is invalid, or given twice. The error names the side.
    """
    ends = {}
    for side in SIDES:
        try:
            ends[side.name] = parse_endpoints(given.get(side.name, ()), bind=side.binds)
        except EndpointError as error:
            error.args = (f"{side.name}: {error}",)
            raise
    return Ends().with_sides(ends)


def _clash(one: str, other: str) -> bool:
    """Return True if only one of two addresses can be bound.

    An address with ``*`` or port 0 is different at each bind. The address of all interfaces includes each interface.
    """
    first, second = _TCP.fullmatch(one.removeprefix("tcp://")), _TCP.fullmatch(other.removeprefix("tcp://"))
    if first is None or second is None:
        return one == other and not one.endswith("://*")
    if first["port"] == "*" or second["port"] == "*" or int(first["port"]) != int(second["port"]):
        return False
    hosts = {_SAME_HOSTS.get(host, host) for host in (first["host"].lower(), second["host"].lower())}
    return int(first["port"]) != 0 and (len(hosts) == 1 or ("*" in hosts and not any("[" in host for host in hosts)))


_SAME_HOSTS = {"localhost": "127.0.0.1", "0.0.0.0": "*"}  # compared, not bound


def _check_tcp(text: str, rest: str, bind: bool) -> None:
    match = _TCP.fullmatch(rest)
    if match is None:
        raise _error(text, "does not have the form 'tcp://host:port'", "write for example 'tcp://127.0.0.1:5555'")
    host, port = match["host"], match["port"]
    if port != "*" and int(port) > 65_535:
        raise _error(text, f"has port {port}", "use a port of at most 65535")
    if not bind and (host == "*" or port in ("*", "0")):
        raise _error(
            text,
            "connects, but has no specific host or port",
            "give the host and port to connect to, or write 'bind:' before the address",
        )


def _check_place_of_peer(text: str, peer: str, address: str) -> None:
    """Raise EndpointError for the name of a peer at the wrong place.

    ``address`` is the text after the peer, which stands directly before the transport.
    """
    if peer and address.startswith("@"):
        raise _error(text, "has two '@' after the name of the peer", f"write '{peer}@{address.lstrip('@')}'")
    verb = address.partition(":")[0]
    if peer and verb in ("bind", "connect") and not address.startswith(f"{verb}://"):
        after = address.removeprefix(f"{verb}:")
        right = f"connect:{peer}@{after}" if verb == "connect" else f"bind:{after}"
        why = "" if verb == "connect" else ", because an endpoint that binds names no peer"
        raise _error(text, f"has '{verb}:' after the name of the peer", f"write '{right}'{why}")
    name, at, host = address.removeprefix("tcp://").partition("@")
    if at and address.startswith("tcp://"):  # in an ipc path, @ is an ordinary character
        raise _error(text, "has the name of a peer after tcp://", f"write '{name}@tcp://{host}'")


def _check_peer(text: str, peer: str, transport: str, bind: bool) -> None:
    if not _PEER.fullmatch(peer):
        raise _error(text, f"names the peer {peer!r}", "write the name of its key file, as in 'feed@tcp://feed-1:5555'")
    if bind:
        remedy = "remove the name; the keys in the directory peers= decide who may connect"
        raise _error(text, "binds, but names one peer", remedy)
    if transport == "inproc":
        raise _error(text, "names a peer, but inproc needs no keys", "remove the name")


def _check_ipc(text: str, rest: str, bind: bool) -> None:
    if len(rest.encode()) > _IPC_PATH_MAX:
        raise _error(text, f"has a path of {len(rest.encode())} bytes", f"use at most {_IPC_PATH_MAX} bytes")
    if rest == "*" and not bind:
        raise _error(text, "connects to '*'", "write a path instead of '*'")


def _error(text: str, wrong: str, remedy: str) -> EndpointError:
    return EndpointError(f"endpoint {text!r} {wrong}: {remedy}", endpoint=text)
