"""The API of txZMQ, implemented with zroute's sockets, for existing programs.

Replace ``from txzmq import …`` with ``from zroute.txzmq import …``. The page "Migrate from txZMQ" of the documentation
lists the bugs of txZMQ that this package fixes. The page also shows the API that new programs should use instead.
"""

from __future__ import annotations

from zroute.txzmq.connection import ZmqConnection, ZmqEndpoint, ZmqEndpointType, ZmqFactory
from zroute.txzmq.pubsub import ZmqPubConnection, ZmqSubConnection
from zroute.txzmq.pushpull import ZmqPullConnection, ZmqPushConnection
from zroute.txzmq.req_rep import ZmqREPConnection, ZmqREQConnection, ZmqRequestTimeoutError
from zroute.txzmq.router_dealer import ZmqDealerConnection, ZmqRouterConnection

__all__ = [
    "ZmqConnection",
    "ZmqDealerConnection",
    "ZmqEndpoint",
    "ZmqEndpointType",
    "ZmqFactory",
    "ZmqPubConnection",
    "ZmqPullConnection",
    "ZmqPushConnection",
    "ZmqREPConnection",
    "ZmqREQConnection",
    "ZmqRequestTimeoutError",
    "ZmqRouterConnection",
    "ZmqSubConnection",
]
