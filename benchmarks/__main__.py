"""Run every benchmark, each in a process of its own, and print its JSON lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run all scripts named ``bench_*``, or those given as arguments; return the number that failed."""
    names = sys.argv[1:] or sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    n_failed = 0
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        n_failed += subprocess.run(command, check=False).returncode != 0  # noqa: S603 - our own scripts
    return n_failed


if __name__ == "__main__":
    sys.exit(main())
