"""Flows from the shell: ``python -m flows.NAME study.toml``, with the exit codes of `kconn`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, get_args

from prefect import Flow

from flows.declaring import Resources
from flows.places import locate_study
from flows.server import embedded_server
from kconn.cli import EXIT_DONE, guarded
from kconn.cluster.table import ClusterKind
from kconn.study.file import read_study


def run_from_shell(flow: Flow[..., Any], argv: Sequence[str] | None = None) -> int:
    """Run a flow on Prefect's embedded server, or on the one in PREFECT_API_URL, and return an exit code."""
    module = flow.fn.__module__ if flow.fn.__module__ != "__main__" else f"flows.{flow.name.removeprefix('kconn-')}"
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(flow.description or "").split("\n\n")[0])
    parser.add_argument("study", help="the study file")
    told = {name: field.description for name, field in Resources.model_fields.items()}
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help=told["workers"])
    where.add_argument("--scheduler", help=told["scheduler"])
    parser.add_argument("--cluster", choices=get_args(ClusterKind), help=told["cluster"])
    parser.add_argument("--tls", metavar="FOLDER", help=told["tls"])
    parser.add_argument("--step-minutes", type=float, help=told["step_minutes"])
    parser.add_argument("--performance-report", action="store_true", help=told["performance_report"])
    if "settle_minutes" in flow.parameters.properties:
        parser.add_argument(
            "--settle-minutes", type=float, default=10.0, help="files that changed since then are left (default 10)"
        )
    arguments = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    resources = {name: arguments.pop(name) for name in Resources.model_fields if name in arguments}

    def run() -> int:
        read_study(locate_study(arguments["study"]))  # a bad file is told at once; a server takes seconds to start
        with embedded_server():
            ended = flow(**arguments, resources=Resources(**resources))
        sys.stdout.write(f"{ended}\n")
        return EXIT_DONE

    return guarded(run, study=arguments["study"])
