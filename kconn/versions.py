"""What made a result: the version of kconn's code and of the libraries under it."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

#: Libraries whose arithmetic or files reach a result.
LIBRARIES: Final = ("dask", "formulaic", "nibabel", "numba", "numpy", "pandas", "scipy", "xarray", "zarr")
# These show or transport results and cannot change one.
_NO_RESULT: Final = frozenset(
    {
        "__init__.py",
        "cli.py",
        "cluster.py",
        "cluster_table.py",
        "dask_settings.py",
        "errors.py",
        "execution.py",
        "export",
        "kubernetes.py",
        "overdue.py",
        "progress.py",
        "report",
        "run_log.py",
        "study/scaffold.py",
        "slurm.py",
        "summary.py",
        "testing",
        "tls.py",
        "study/workbench.py",
    }
)


@cache
def code_version() -> str:
    """Return version and digest of the source that computes results: any change of it makes results anew."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not {name.parts[0], name.as_posix()} & _NO_RESULT:
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{version('kconn')}+{digest.hexdigest()[:12]}"


@cache
def software_versions() -> dict[str, str]:
    """Return the versions of Python, kconn and the libraries that compute."""
    found = {name: version(name) for name in LIBRARIES}
    return {"kconn": code_version(), "python": platform.python_version(), **found}
