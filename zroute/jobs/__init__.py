"""Jobs that are shared among workers.

An owner has the jobs, and workers do them. The wire is in `zroute.messages.jobs`. Nothing here uses a socket: clocks
and functions that send are arguments.
"""
