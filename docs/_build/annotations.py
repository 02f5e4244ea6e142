"""Give parameters that a docstring describes together their own types and defaults (an extension of griffe)."""

from __future__ import annotations

from typing import Any

import griffe


class OwnAnnotations(griffe.Extension):
    """Correct the types of "a, b" in a numpydoc section, where griffe gives both the type of the first."""

    def on_function(self, *, func: griffe.Function, **other: Any) -> None:
        _set_annotations(func.docstring, func.parameters)

    def on_class(self, *, cls: griffe.Class, **other: Any) -> None:
        _set_annotations(cls.docstring, cls.parameters)


def _set_annotations(docstring: griffe.Docstring | None, parameters: griffe.Parameters) -> None:
    for section in docstring.parsed if docstring else ():
        if isinstance(section, griffe.DocstringSectionParameters):
            for parameter in section.value:
                if parameter.name in parameters:
                    parameter.annotation = parameters[parameter.name].annotation
                    parameter.value = parameters[parameter.name].default
