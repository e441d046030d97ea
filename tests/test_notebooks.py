"""Notebooks run as they are, and are stored without what they printed."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
#: Notebooks that read real data, and the folders that they read.
REAL = {"ordered_netmat": ("hcp12_dk70", "hcp_group_fc")}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__runs_from_top_to_bottom(path, monkeypatch):
    if missing := [name for name in REAL.get(path.stem, ()) if not (DATA / name).is_dir()]:
        pytest.skip(f"no real data beside this checkout: {', '.join(missing)}")
    monkeypatch.setenv("KCONN_REAL_DATA", str(DATA))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    NotebookClient(read(path), timeout=120, kernel_name="python3").execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__is_stored_without_outputs(path):
    for cell in read(path).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__imports_the_face_alone(path):
    source = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    lines = [line.strip() for line in source.splitlines() if "import" in line and "kconn" in line]
    assert lines == ["import kconn"]
