"""Fetch the embedding of revisions of a model on the Hugging Face Hub, and nothing else of them.

In: an address, ``hf://ORG/MODEL``, and names of revisions. Out: a folder of small safetensors files, one per revision,
which is then converted as a folder of checkpoints. May import the rest of `conversion`, and what it may import.

client      the Hub: revisions, files, and parts of files, with repeated attempts
model       a revision as a source, of which the headers alone are read
fetch       which tensors of which revisions are fetched, into which files
"""

from deadtok_xr.conversion.hub.client import is_hub_address
from deadtok_xr.conversion.hub.fetch import open_revisions

__all__ = ["is_hub_address", "open_revisions"]
