"""Decorators, their options, and the analysis of the decorated functions.

This code runs before the app starts, and needs neither sockets nor a reactor.
"""
