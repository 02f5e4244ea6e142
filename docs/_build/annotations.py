"""Parameters that a docstring describes together have each the type of its own (an extension of griffe)."""

from __future__ import annotations

from typing import Any

import griffe


class OwnAnnotations(griffe.Extension):
    """In "a, b" of a numpydoc section griffe gives both the type of the first."""

    def on_function(self, *, func: griffe.Function, **of_griffe: Any) -> None:
        _mend(func.docstring, func.parameters)

    def on_class(self, *, cls: griffe.Class, **of_griffe: Any) -> None:
        _mend(cls.docstring, cls.parameters)


def _mend(docstring: griffe.Docstring | None, parameters: griffe.Parameters) -> None:
    for section in docstring.parsed if docstring else ():
        if isinstance(section, griffe.DocstringSectionParameters):
            for said in section.value:
                if said.name in parameters:
                    said.annotation = parameters[said.name].annotation
                    said.value = parameters[said.name].default
