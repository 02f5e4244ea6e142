"""prime-rl's sparse weight updates: the names in a stream of them, and the checksum of their tensors.

A stream has a folder for each step. Most hold the values that changed since an earlier step: a manifest,
`sparse_update_manifest.json`, and `sparse_update_patch.safetensors`, in which the tensor i of the model has the flat
positions ``tensor_i.indices`` and the new values ``tensor_i.values``, perhaps in one zstd frame. Others are full
checkpoints, from which the changes are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16

FORMAT = "prime-rl-sparse-update"
VERSION = 1
MANIFEST = "sparse_update_manifest.json"
PATCH = "sparse_update_patch.safetensors"


def tensor_hash(values: NDArray[Any]) -> int:
    """Return the hash that `torch.hash_tensor` computes, which older versions of torch do not have.

    Each value is widened to float64 or int64; the hash is the XOR of their bits. The hash of a tensor is the XOR of the
    hashes of its parts.
    """
    if values.dtype == BFLOAT16:
        values = (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    wide = values.astype(np.float64 if values.dtype.kind in "fV" else np.int64)
    return int(np.bitwise_xor.reduce(wide.view(np.uint64), axis=None))


def index_dtype(n_values: int) -> np.dtype[Any]:
    """Return the dtype of the positions in a tensor of so many values."""
    return np.dtype(np.int32 if n_values < 2**31 else np.int64)
