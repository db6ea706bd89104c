"""The module of `ZmqFactory` in txZMQ, for programs that import from it."""

from __future__ import annotations

from zroute.txzmq.connection import ZmqFactory

__all__ = ["ZmqFactory"]
