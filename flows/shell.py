"""Flows from the shell: ``python -m flows.NAME study.toml``, with the exit codes of `kconn`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from prefect import Flow

from flows.server import embedded_server
from kconn.cli import EXIT_DONE, guarded


def run_from_shell(flow: Flow[..., Any], argv: Sequence[str] | None = None) -> int:
    """Run a flow on Prefect's embedded server, or on the one in PREFECT_API_URL, and return an exit code."""
    module = flow.fn.__module__ if flow.fn.__module__ != "__main__" else f"flows.{flow.name.removeprefix('kconn-')}"
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(flow.description or "").split("\n\n")[0])
    parser.add_argument("study", help="the study file")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="worker processes (default: one per core; 0: in this process)")
    where.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--step-minutes", type=float, default=240.0, help="a task may compute this long (default 240)")
    parser.add_argument("--performance-report", action="store_true", help="write Dask's report beside the study's")
    if "settle_minutes" in flow.parameters.properties:
        parser.add_argument(
            "--settle-minutes", type=float, default=10.0, help="files that changed since then are left (default 10)"
        )
    arguments = parser.parse_args(argv)

    def run() -> int:
        with embedded_server():
            told = flow(**vars(arguments))
        sys.stdout.write(f"{told}\n")
        return EXIT_DONE

    return guarded(run, study=arguments.study)
