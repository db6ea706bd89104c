"""Decorators, their options, and the analysis of the decorated functions.

All of it runs before the app starts, without sockets and without a reactor.
"""
