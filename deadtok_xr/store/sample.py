"""The layout of a recording of samples: a group with one recording store for each parameter group, dtype and device.

Rows of such a store are elements: `elements` of the root group has their flat indices in their parameters, of all
stores one after the other, and the attribute `parts` says which rows belong to which parameter.
"""

from __future__ import annotations

PART_MANIFESTS = "part_manifests"
"""The attribute with the digest of each part's manifest, once all are complete: what is restored from another store has
a manifest of its own. It is not in the manifest of the sample, so that a kill leaves no manifest that is not true."""
KIND = "deadtok_sample"
"""The root attribute; its value is the format's version."""
FORMAT = "1.0"
PART = "part{}"
"""The name of each recording store."""
ELEMENTS = "elements"
"""The name of the array of flat indices."""
