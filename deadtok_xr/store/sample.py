"""The layout of a recording of samples: a group with one recording store for each parameter group, dtype and device.

Rows of such a store are elements: `elements` of the root group has their flat indices in their parameters, of all
stores one after the other, and the attribute `parts` says which rows belong to which parameter.
"""

from __future__ import annotations

KIND = "deadtok_sample"
"""The root attribute; its value is the format's version."""
FORMAT = "1.0"
PART = "part{}"
"""The name of each recording store."""
ELEMENTS = "elements"
"""The name of the array of flat indices."""
