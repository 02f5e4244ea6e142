"""What is known about a source before its arrays are described one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deadtok_xr.conversion.inspect.axes import Axes
from deadtok_xr.conversion.inspect.keys import KeyMap
from deadtok_xr.conversion.inspect.steps import StepLabels
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Source


@dataclass(frozen=True)
class Context:
    """A source with everything that describing one of its arrays needs.

    Attributes
    ----------
    source, key_map, options
        The source, and how to read it.
    keys
        Variable of the schema -> key of the source.
    axes, steps
        The sizes and step labels of the recording.
    is_model
        Whether the source is a checkpoint of a model, or several of them.
    warnings
        What was left out because nothing proves what it is.
    """

    source: Source
    key_map: KeyMap
    options: Options
    keys: Mapping[str, str]
    axes: Axes
    steps: StepLabels
    is_model: bool
    warnings: tuple[str, ...] = ()
