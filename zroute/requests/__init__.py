"""Requests: what a client sends, and what a server receives.

No module here does I/O: `zroute.sockets.requests` has the sockets.
"""
