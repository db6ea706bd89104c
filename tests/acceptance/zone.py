"""A DNS server of a test, whose one name has the addresses that the test gives it."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer
from twisted.names import common, dns, server

NAME = "feeds.example"
"""The name of the zone."""


class Zone(common.ResolverBase):
    """Answers questions for `NAME` with ``addresses``; without any, the name does not exist."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses = addresses
        self.asked = 0

    def query(self, query: Any, timeout: Any = None) -> Any:
        """Answer a question about an IPv4 address."""
        if query.name.name != NAME.encode() or not self.addresses:
            return defer.fail(dns.DomainError())
        self.asked += query.type == dns.A
        answers = [
            dns.RRHeader(query.name.name, dns.A, ttl=0, payload=dns.Record_A(each, ttl=0))
            for each in self.addresses
            if query.type == dns.A
        ]
        return defer.succeed((answers, [], []))

    def protocol(self) -> Any:
        """Return a protocol for ``reactor.listenUDP``."""
        return dns.DNSDatagramProtocol(server.DNSServerFactory(clients=[self]))
