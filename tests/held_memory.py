"""What a run on two workers holds in memory while it goes on."""

import subprocess
import sys
import time
from dataclasses import dataclass

import psutil

from tests.warm_shell import ROOT


@dataclass(frozen=True)
class Held:
    """Resident bytes at a moment, in seconds since 1970: of the command, and of each process that it started."""

    at: float
    command: int
    workers: tuple[int, ...]


def held_while_running(study, *, every=0.5):
    """Run a study on two workers to its end; return what was held every so many seconds."""
    command = [sys.executable, "-m", "kconn.cli", "run", str(study), "--workers", "2"]
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    held = []
    while process.poll() is None:
        try:
            workers = tuple(child.memory_info().rss for child in process.children())
            held.append(Held(at=time.time(), command=process.memory_info().rss, workers=workers))
        except psutil.NoSuchProcess:  # one that ended meanwhile
            continue
        time.sleep(every)
    assert process.returncode == 0
    return held
