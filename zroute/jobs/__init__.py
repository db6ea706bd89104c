"""Jobs that are shared among workers.

An owner keeps the jobs, and workers do them. The wire format is in `zroute.messages.jobs`. No module in this package
uses a socket: the clock and the functions that send messages are arguments.
"""
