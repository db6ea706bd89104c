"""Detection of wrappers that hide the parameters of a function.

An example is ``lambda *args: function(*args)``.

With `functools.wraps`, Python itself finds the wrapped function. Without it, only the source of the wrapper shows the
function that it calls. If the source is not available, the wrapper is not checked.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, MemberDescriptorType, MethodType
from typing import Any

__all__ = ["forwarded"]

_READS = ("copy", "get", "items", "keys", "values")
"""The methods of a dict that do not change it."""


def forwarded(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return the functions to which ``function`` passes all its arguments unchanged.

    The source is searched for calls of the forms ``inner(*args, **kwargs)`` and ``maybeDeferred(inner, *args,
    **kwargs)``, where ``inner`` is in a closure or on ``self``. The result is empty if the wrapper has other positional
    parameters or changes its arguments.
    """
    function = inspect.unwrap(function)
    if isinstance(function, partial):
        return [partial(inner, *function.args, **function.keywords) for inner in forwarded(function.func)]
    if not inspect.isroutine(function):  # an object with __call__
        function = MethodType(type(function).__call__, function)
    code, instance = getattr(function, "__code__", None), getattr(function, "__self__", None)
    if not isinstance(code, CodeType) or not code.co_flags & inspect.CO_VARARGS:
        return []
    # Other positional parameters of the wrapper, besides self, consume arguments.
    if code.co_argcount > (instance is not None):
        return []
    inner = [found for found in _called(function, code, instance) if callable(found) and not inspect.isclass(found)]
    if instance is not None and not code.co_argcount:  # *args begins with the instance
        return [MethodType(each, instance) for each in inner]
    return inner


def _called(function: Callable[..., Any], code: CodeType, instance: object) -> Iterator[Any]:
    """Yield the objects that ``function`` calls with exactly its own arguments."""
    tree = _tree(function)
    first, args, kwargs = _names(code)
    if tree is None or any(_changes(node, args, kwargs) for node in ast.walk(tree)):
        return
    held = _closure(function, code)
    for node in ast.walk(tree):
        target = _target(node, args, kwargs)
        if isinstance(target, ast.Name):
            yield held.get(target.id)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == first:
            yield _attribute(instance, target.attr)


def _names(code: CodeType) -> tuple[str | None, str, str | None]:
    """Return the names of ``self``, ``*args`` and ``**kwargs``; None if missing."""
    names, index = code.co_varnames, code.co_argcount + code.co_kwonlyargcount
    has_kwargs = code.co_flags & inspect.CO_VARKEYWORDS
    return names[0] if code.co_argcount else None, names[index], names[index + 1] if has_kwargs else None


def _tree(function: Callable[..., Any]) -> ast.Module | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source, or a lambda in the middle of an expression
        return None


def _changes(node: ast.AST, args: str, kwargs: str | None) -> bool:
    """Return True if ``node`` may change the arguments.

    Examples are ``args = …``, ``kwargs["x"] = …`` and ``kwargs.pop("x")``.
    """
    if isinstance(node, ast.Name):
        return node.id in (args, kwargs) and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Subscript):
        return _is_name(node.value, kwargs) and not isinstance(node.ctx, ast.Load)
    return isinstance(node, ast.Attribute) and _is_name(node.value, kwargs) and node.attr not in _READS


def _target(node: ast.AST, args: str, kwargs: str | None) -> ast.AST | None:
    """Return ``f`` of ``f(*args, **kwargs)`` or ``g(f, *args, **kwargs)``, else None."""
    if not isinstance(node, ast.Call) or not node.args:
        return None
    *_, target, last = (node.func, *node.args)
    whole = isinstance(last, ast.Starred) and _is_name(last.value, args)
    named = all(keyword.arg is None and _is_name(keyword.value, kwargs) for keyword in node.keywords)
    return target if whole and named else None


def _is_name(node: ast.AST, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _closure(function: Callable[..., Any], code: CodeType) -> dict[str, Any]:
    """Return the variables of enclosing functions that ``function`` uses, by name."""
    held = {}
    for name, cell in zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=False):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return held


def _attribute(instance: object, name: str) -> Any:
    """Return the attribute ``name`` of ``instance`` without running user code.

    A property, for example, is not evaluated.
    """
    found = inspect.getattr_static(instance, name, None)
    if isinstance(found, MemberDescriptorType):
        return found.__get__(instance)
    return found if name in getattr(instance, "__dict__", {}) else None
