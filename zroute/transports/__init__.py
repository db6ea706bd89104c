"""Transports for apps; each implements `zroute.transport`.

Tests of apps use another one, in memory: `zroute.testing.transport`.
"""
