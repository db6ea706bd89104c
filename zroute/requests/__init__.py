"""Requests: what a client sends, and what a server receives.

No module in this package does I/O: the sockets are in `zroute.sockets.requests`.
"""
