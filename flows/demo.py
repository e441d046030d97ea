"""The main job on a simulated trial: ``python -m flows.demo FOLDER`` (what ``make demo`` runs)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.server import embedded_server
from flows.study import run_study
from kconn.cli import EXIT_DONE, EXIT_USAGE, guarded
from kconn.report.study import recover_planted
from kconn.study.scaffold import write_simulated_study
from kconn.study.workbench import prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate a trial, run its study as a flow, and say where the report is and what was found."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m flows.demo FOLDER\n")
        return EXIT_USAGE
    folder = Path(arguments[0])
    return guarded(lambda: _demonstrate(folder), study=str(folder / "study.toml"))


def _demonstrate(folder: Path) -> int:
    start = time.perf_counter()
    _say(f"simulating a trial in {folder}: two groups, two visits, known effects")
    study = write_simulated_study(folder, n_subjects_per_group=16, layout="fmriprep", seed=1)
    _say(f"running {study} as a Prefect flow on a local Dask cluster")
    with embedded_server():
        run_study(str(study))
    bench = prepare(study)
    _say(f"done in {time.perf_counter() - start:.0f} s\n")
    for title, recovery in recover_planted(bench).items():
        _say(
            f"{title}: found {recovery.n_found} of {recovery.n_planted} planted connections, "
            f"{recovery.n_false} false among {recovery.n_tested - recovery.n_planted} others"
        )
    _say(f"\nreport: {bench.study.report}")
    return EXIT_DONE


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
