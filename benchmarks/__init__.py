"""Measure the cost of zroute with one command: ``python -m benchmarks``."""
