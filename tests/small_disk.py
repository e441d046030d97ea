"""A disk that is soon full."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

_MOUNT, _UMOUNT = shutil.which("mount") or "", shutil.which("umount") or ""


@contextmanager
def small_disk(folder, size):
    """Mount a disk in memory at a new folder; skip the test where that is not allowed."""
    folder.mkdir()
    small = [_MOUNT, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not _UMOUNT or subprocess.run(small, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run([_UMOUNT, "--lazy", str(folder)], check=True)


def grow(folder, size):
    """Give a small disk more room."""
    subprocess.run([_MOUNT, "-o", f"remount,size={size}", str(folder)], check=True)
