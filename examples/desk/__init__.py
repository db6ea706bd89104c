"""A trading desk as a package of several modules with shared schemas.

Each module has a Routes object, and app.py includes them.

zroute run --app-dir examples desk.app:exchange desk.app --for 3s
"""
