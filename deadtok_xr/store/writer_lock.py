"""Tell two processes apart that record into one store.

The lock of conversions and analyses (`in_progress`) belongs to an open file, which forked processes inherit. Those of a
DataLoader outlive a killed training for seconds, in which it could not resume. This lock belongs to the process, as
POSIX defines it (`fcntl`): the system releases it when the process ends, and network folders have it too.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deadtok_xr.errors import DestinationExistsError


class WriterLock:
    """A lock on a store in a folder, held until it is closed or the process ends. Its file lies beside the store.

    Within one process it keeps nobody out, so that a training that failed in a notebook can be resumed there. Windows
    and file systems without locks have none.

    Parameters
    ----------
    path
        The store, which need not exist; None if nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self._store = path
        self._file: int | None = None

    @contextmanager
    def acquired(self) -> Iterator[None]:
        """Acquire the lock, and release it if an error is raised.

        Raises
        ------
        DestinationExistsError
            If another process holds it.
        """
        if self._store is not None and sys.platform != "win32":
            path = self._path(self._store)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                while self._file is None:
                    self._file = _locked(path, self._store)
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            except DestinationExistsError:
                raise
            except OSError:  # there are no locks; or the folder cannot be written, which is reported when the store is
                pass
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock if it is held, and remove its file."""
        if self._store is not None and self._file is not None:
            self._path(self._store).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    @staticmethod
    def _path(store: Path) -> Path:
        return store.absolute().with_name(f".{store.name}.writer")


def _locked(path: Path, store: Path) -> int | None:
    """Open and lock a file; None if another process has removed it meanwhile."""
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
    except (BlockingIOError, PermissionError):  # what systems raise if another process holds it
        holder = os.pread(file, 200, 0).decode(errors="replace")
        os.close(file)
        holder = holder if holder and holder.isprintable() else "another process"
        raise DestinationExistsError(f"{store} is being written by {holder}: end it, or choose another store") from None
    except FileNotFoundError:
        pass
    except OSError:
        os.close(file)
        raise
    os.close(file)
    return None
