"""Find groups of routes that no app includes, so that their handlers never run.

A group may belong to an app that this command does not load. The search therefore reports a group only if the app's own
module has a name for the group but does not use it. A module uses a group if it includes the group, even under a
condition, or passes it to a function.
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
    """Return the groups that ``module`` does not use, with their names in the module.

    The result omits groups that are included by one of ``apps``, or by an app that is a global of any loaded module. It
    also omits groups that have neither handlers nor publications.
    """
    included = {id(group) for app in (*apps, *_global_apps()) for group in app._groups()}
    found = {id(group): (name, group) for name, group in _forgotten(module) if group._holds_anything}
    return [found[key] for key in found if key not in included]


def _global_apps() -> Iterator[App]:
    """Yield the apps that are globals of any loaded module."""
    for module in list(sys.modules.values()):  # a copy, because another thread may import a module meanwhile
        if isinstance(module, ModuleType):
            yield from (value for value in list(vars(module).values()) if isinstance(value, App))


def _forgotten(module: ModuleType) -> Iterator[tuple[str, Routes]]:
    """Yield the groups that ``module`` does not use, with their names.

    These are groups of the module, and groups that it imports, if they only decorate functions. Groups of imported
    modules that ``module`` never uses are included too. They are found in the source text of the module; without a
    source text, there is no result.
    """
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
    """Return the names that are used as values.

    A value is, for example, an argument, an item of a list, or the right side of an assignment. ``group`` in
    ``group.subscribe`` is not a value.
    """
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    return {node.id for node in names if id(node) not in bases}
