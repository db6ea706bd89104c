"""A package of handler modules with shared schemas: each module has its Routes, and app.py joins them.

zroute run --app-dir examples desk.app:exchange desk.app --for 3s
"""
