"""The names and the behaviour of txZMQ over zroute's sockets: ``from zroute.txzmq import …`` in place of ``txzmq``.

For programs that exist. What is mended, and what a new program would use instead, stands in the documentation
under "Migrate from txZMQ".
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
