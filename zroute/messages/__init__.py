"""Conversions between bytes and topics, messages and frames.

The modules in this folder are pure: they open no socket, use no reactor and read no clock.
"""
