"""Requests: the client's half and the server's half.

No module in this package does I/O: the sockets are in `zroute.sockets.requests`.
"""
