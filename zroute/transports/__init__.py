"""Transports for apps; each implements `zroute.transport`.

Tests of apps use another transport, in memory: `zroute.testing.transport`.
"""
