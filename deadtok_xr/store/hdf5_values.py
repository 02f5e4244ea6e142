"""Where the values of an HDF5 dataset lie: a file from elsewhere could name any file that the user may read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deadtok_xr.errors import InputError
from deadtok_xr.text import shortened

if TYPE_CHECKING:
    import h5py

_DEEPEST = 8


def check_inside(path: Path, dataset: h5py.Dataset, depth: int = 0) -> None:
    """Check that the values of a dataset are in its own file, or in HDF5 files in the folder of that.

    Parameters
    ----------
    path
        The file that the user named.
    dataset
        A dataset of it, or one of which its virtual datasets consist.

    Raises
    ------
    InputError
        If they are in other files: of an external link, of external storage, or of a virtual dataset.
    """
    import h5py

    folder, own = path.resolve().parent, Path(dataset.file.filename)
    if folder not in own.resolve().parents:
        raise _outside(path, dataset, own.name)
    storage = dataset.id.get_create_plist()
    if storage.get_external_count():
        raise _outside(path, dataset, storage.get_external(0)[0].decode(errors="replace"))
    for part in dataset.virtual_sources() if dataset.is_virtual else ():
        source = own if part.file_name == "." else own.parent / part.file_name
        if folder not in source.resolve().parents or depth == _DEEPEST:
            raise _outside(path, dataset, part.file_name)
        if not source.is_file():
            continue
        with h5py.File(source, "r") as file:
            found = file.get(part.dset_name)
            if isinstance(found, h5py.Dataset):
                check_inside(path, found, depth + 1)


def _outside(path: Path, dataset: h5py.Dataset, other: str) -> InputError:
    return InputError(
        f"{path}: {shortened(dataset.name)} has values in {shortened(other)}; expected: in the file itself, or in a "
        "virtual dataset of HDF5 files in the same folder; copy them into one file, for example with h5repack"
    )
