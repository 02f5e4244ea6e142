"""Parts of Dask that are not documented are used in one file."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "deadtok_xr"
THE_FILE = "dask_arrays/internals.py"
MODULES = (
    "dask._",
    "dask.array.",
    "dask.blockwise",
    "dask.core",
    "dask.highlevelgraph",
    "dask.layers",
    "dask.optimization",
)
ATTRIBUTES = {"_meta", "expr", "dask", "__dask_graph__", "__dask_keys__", "__dask_layers__", "__dask_optimize__"}


def private_parts(path: Path) -> list[str]:
    """What a file uses of Dask that is not documented."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found += [name for name in names if name.startswith(MODULES)]
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.append(f".{node.attr}")
    return found


def test_one_file_uses_private_parts_of_dask() -> None:
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if private_parts(path)}
    assert users == {THE_FILE}
