"""A token of a function that changes when the function would compute something else.

Dask's own token of a function that is not importable holds the file and the line where it was defined: another one in
each session of a notebook, for the same text. Interrupted results could then not be resumed after a restart.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from dask.base import tokenize

_NO_MEANING = {
    *("__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__"),
    *("__slotnames__", "_abc_impl"),  # notes that copyreg and abc leave in a class
}
_DEFINED_IN_PYTHON = 1 << 9  # the flag of heap types


def code_token(x: Any) -> str:
    """Return a token of a function or class: its code, its defaults, and the values of the names that it uses."""
    root = x.func if isinstance(x, functools.partial) else getattr(x, "py_func", x)
    return str(tokenize(_Description(getattr(root, "__module__", None)).of(x)))


class _Description:
    """Describes objects by plain parts; functions of other modules by name and code alone."""

    def __init__(self, module: str | None) -> None:
        self.module, self.seen = module, list[Any]()

    def of(self, x: Any) -> Any:
        if any(x is known for known in self.seen):  # a function that calls itself, a method of a class that it names
            return ("again", next(i for i, known in enumerate(self.seen) if x is known))
        if isinstance(x, ModuleType):
            return ("module", x.__name__)
        x = getattr(x, "py_func", x)  # of a function compiled by numba
        if isinstance(x, (staticmethod, classmethod)):
            return (type(x).__name__, self.of(x.__func__))
        if isinstance(x, functools.partial):
            return ("partial", self.of(x.func), self.of(x.args), self.of(x.keywords))
        if isinstance(x, MethodType):
            return ("method", self.of(x.__func__), self.of(x.__self__))
        if isinstance(x, property):
            return ("property", self.of(x.fget), self.of(x.fset))
        if isinstance(x, FunctionType):
            return self._function(x)
        if isinstance(x, type):
            return self._class(x)
        if type(x) in (list, tuple):
            return [self.of(part) for part in x]
        if type(x) is dict:
            return [(self.of(key), self.of(value)) for key, value in x.items()]
        return ("value", tokenize(x))

    def _function(self, x: FunctionType) -> Any:
        self.seen.append(x)
        code = (x.__qualname__, _code(x.__code__))
        if x.__module__ != self.module:
            return (x.__module__, code)
        used = {name: x.__globals__[name] for name in sorted(set(_globals(x.__code__))) if name in x.__globals__}
        cells = [_contents(cell) for cell in x.__closure__ or ()]
        return (code, *map(self.of, (x.__defaults__, x.__kwdefaults__, used, cells)))

    def _class(self, x: type) -> Any:
        if x.__module__ != self.module or not x.__flags__ & _DEFINED_IN_PYTHON:
            return (x.__module__, x.__qualname__)  # code without a __name__ is of the module builtins, like object
        self.seen.append(x)
        own = {name: value for name, value in vars(x).items() if name not in _NO_MEANING and not _is_field(value)}
        return (x.__qualname__, [self.of(base) for base in x.__bases__], self.of(own))


def _code(code: CodeType) -> Any:
    parts = [_code(part) if isinstance(part, CodeType) else part for part in code.co_consts]
    return (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, parts)


def _globals(code: CodeType) -> Iterator[str]:
    """Yield the names of the globals that code reads."""
    yield from (str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _globals(part)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not assigned yet
        return None


def _is_field(value: Any) -> bool:
    """Return whether a value is what `dataclasses` notes about a class; defaults are in the class and in __init__."""
    from dataclasses import Field, _DataclassParams  # type: ignore[attr-defined]

    return isinstance(value, _DataclassParams) or (
        type(value) is dict and any(isinstance(part, Field) for part in value.values())
    )
