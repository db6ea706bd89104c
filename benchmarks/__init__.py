"""One command that settles what zroute costs: ``python -m benchmarks``."""
