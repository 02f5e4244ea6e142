"""The structure of the package: few modules at its root, imports in one direction, and a cheap import."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "deadtok_xr"
MAX_ROOT_MODULES = 14
PACKAGES = (
    "_version", "errors", "text", "attributes", "bfloat16", "sparse_updates", "schema", "kernels", "dask_arrays",
    "store", "recording", "replay", "recorder", "monitor", "undo", "engine", "conversion", "checkpoints", "analyses",
    "plot", "results", "explorer", "testing", "demo", "cli", "__main__",
)  # fmt: skip
"""The packages and modules in the import order: each may import those before it."""
HEAVY = {"torch", "h5py", "matplotlib", "numba", "scipy", "zarr", "xarray", "dask", "bokeh"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, in functions too; not those for type checkers alone."""
    nodes: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == PACKAGE.name)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import; expected the full name of the module")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes.extend(ast.iter_child_nodes(node))


IMPORTS = {name: set(imports(path)) for name, path in MODULES.items()}


def package_of(module: str) -> str:
    return module.split(".")[1]


def test_few_modules_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_ROOT_MODULES


def test_every_package_is_listed_in_the_import_order() -> None:
    assert {package_of(module) for module in MODULES if "." in module} == set(PACKAGES)


def test_packages_import_only_packages_before_them_in_the_order() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if "." in module and "." in other and PACKAGES.index(package_of(other)) > PACKAGES.index(package_of(module))
    ]
    assert not wrong


def test_no_import_cycle_between_files() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the files


def test_nothing_imports_the_package_root() -> None:
    assert not [module for module, others in IMPORTS.items() if PACKAGE.name in others]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, deadtok_xr; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
