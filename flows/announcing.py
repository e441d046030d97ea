"""What Prefect's pages and automations are told: artifacts and events. Labels of runs, no paths, no host, no user."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from distributed import Client
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event

from flows.places import REPORTS_URL, link_report
from kconn.exclusions import list_exclusions
from kconn.io import cubes
from kconn.study.plan import Step
from kconn.study.workbench import Workbench

STUDY_FINISHED: Final = "kconn-study.finished"
RUN_EXCLUDED: Final = "kconn-run.excluded"
#: Rows of a table artifact; all of them are in the report.
_ROWS: Final = 1000
#: Seconds between two updates of the progress.
_OFTEN: Final = 5.0


class Progress:
    """The share of runs that are done, as an artifact that moves."""

    def __init__(self, n_run: int) -> None:
        self._n_run = n_run
        self._told = time.monotonic()
        self._artifact: Any = create_progress_artifact(
            progress=0.0, key="progress", description=f"{n_run} runs to do in this phase"
        )

    def tell(self, n_done: int) -> None:
        """Move it, now and then."""
        if n_done == self._n_run or time.monotonic() - self._told > _OFTEN:
            self._told = time.monotonic()
            update_progress_artifact(self._artifact, progress=100.0 * n_done / self._n_run)


def tell_dashboard(client: Client, steps: Iterable[Step]) -> None:
    """Link Dask's dashboard, with what its groups of tasks are."""
    stages = ", ".join(dict.fromkeys(step.stage for step in steps))
    create_link_artifact(
        key="dask-dashboard", link=client.dashboard_link, link_text="Dask dashboard", description=f"to do: {stages}"
    )


def tell_report(bench: Workbench) -> None:
    """Link the report, and show every run's quality and everything that was left out."""
    name, link = bench.study.study.name, link_report(bench.study.report)
    if link is None:
        create_markdown_artifact(
            key="report",
            markdown=f"`{bench.study.study.report}`, beside the study file. Set `{REPORTS_URL}` for a link.",
            description=f"{name}: report",
        )
    else:
        create_link_artifact(key="report", link=link, link_text=f"{name}: report")
    create_table_artifact(key="quality", table=tabulate_quality(bench), description="One row per run")
    rows = [f"| {found.where} | {found.left_out_of} | {found.reason} |" for found in list_exclusions(bench)]
    table = "\n".join(["| what | of | left out because |", "|---|---|---|", *rows[:_ROWS]])
    create_markdown_artifact(
        key="exclusions",
        markdown=table if rows else "Nothing was left out.",
        description="What was left out, and why",
    )


def tabulate_quality(bench: Workbench) -> list[dict[str, Any]]:
    """Return one row per run: how much it moved, what was kept of it, and why it was left out."""
    step = next(step for step in bench.plan.steps if step.stage == "quality")
    ds = cubes.open_group(bench.study.store, step.address).load()
    rows = []
    for i in range(min(ds.sizes["row"], _ROWS)):
        row = ds.isel(row=i)
        run = f"sub-{row['subject'].item()}/ses-{row['session'].item()}/run-{row['run'].item()}"
        numbers = {str(name): _number(row[name]) for name in ds if ds[name].dtype.kind == "f"}
        rows.append({"run": run, **numbers, "left out because": str(row["excluded"].item())})
    return rows


def tell_waiting(waiting: Mapping[str, str], *, cohort: str) -> None:
    """Show the runs that are left for the next time, and whether the cohort waits."""
    lines = [f"The cohort waits: {cohort}\n"] if cohort else []
    lines += ["| run | left for the next time because |", "|---|---|"] if waiting else ["No run waits."]
    lines += [f"| {where} | {reason} |" for where, reason in sorted(waiting.items())[:_ROWS]]
    create_markdown_artifact(key="waiting", markdown="\n".join(lines), description="Left for the next time, and why")


def tell_finished(bench: Workbench, digest: str) -> None:
    """Emit the event that a study is whole."""
    emit_event(STUDY_FINISHED, resource=_resource(bench), payload={"digest": digest, "steps": len(bench.plan.steps)})


def tell_if_excluded(bench: Workbench, step: Step) -> None:
    """Emit an event if a run that was just denoised was left out."""
    reason = cubes.read_attrs(bench.study.store, step.address).get("excluded")
    if reason:
        run = {"prefect.resource.id": f"kconn-run.{step.where}", "prefect.resource.role": "run"}
        emit_event(RUN_EXCLUDED, resource=_resource(bench), related=[run], payload={"reason": str(reason)})


def _resource(bench: Workbench) -> dict[str, str]:
    name = re.sub(r"[^A-Za-z0-9]+", "-", bench.study.study.name).strip("-").lower()
    return {"prefect.resource.id": f"kconn-study.{name}", "prefect.resource.name": bench.study.study.name}


def _number(value: Any) -> float | None:
    number = float(value)
    return round(number, 4) if np.isfinite(number) else None
