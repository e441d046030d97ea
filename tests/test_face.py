"""The public face: every name leads to something, and asking for one imports no more than it needs."""

import subprocess
import sys

import pytest

import kconn


@pytest.mark.parametrize("name", kconn.__all__)
def test_face__name_leads_to_something_documented(name):
    assert getattr(kconn, name).__doc__
    assert name in dir(kconn)


def test_face__imports_nothing_before_it_is_asked():
    script = "import sys, kconn; print(*{'numpy', 'xarray', 'dask', 'numba', 'nilearn', 'prefect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
