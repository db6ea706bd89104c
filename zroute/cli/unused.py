"""Groups of routes that were forgotten: their handlers are there, and no app includes them.

A group may be meant for another app, which is not loaded here. So only groups count that the app's own module has a
name for and does nothing with: it neither includes them, not even under a condition, nor hands them to anything.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType

from zroute.app import App
from zroute.declarations.routes import Routes

__all__ = ["never_included"]


def never_included(module: ModuleType, apps: Iterable[App]) -> list[tuple[str, Routes]]:
    """The groups that ``module`` has forgotten, by the names they have there.

    Those that one of ``apps`` includes, or an app that is a global of any module, are not forgotten.
    """
    included = {id(group) for app in (*apps, *_global_apps()) for group in app._groups()}
    found = {id(group): (name, group) for name, group in _forgotten(module) if group._holds_anything}
    return [found[key] for key in found if key not in included]


def _global_apps() -> Iterator[App]:
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            yield from (value for value in list(vars(module).values()) if isinstance(value, App))


def _forgotten(module: ModuleType) -> Iterator[tuple[str, Routes]]:
    """Groups made or imported here that only decorate functions, and those of modules that are imported and unused."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    handed_on = _handed_on(tree) | set(getattr(module, "__all__", ()))
    for name, value in vars(module).items():
        if isinstance(value, Routes) and name not in handed_on:
            yield name, value
        elif isinstance(value, ModuleType) and name not in read:
            yield from ((f"{name}.{inner}", group) for inner, group in vars(value).items() if isinstance(group, Routes))


def _handed_on(tree: ast.Module) -> set[str]:
    """The names that are read other than for an attribute: as an argument, in a list, in an assignment."""
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    return {node.id for node in names if id(node) not in bases}
