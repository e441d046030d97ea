"""Plan and status as tables for the terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table

from kconn.errors import StoreError
from kconn.io import cubes, store
from kconn.plan import COHORT_STAGES, RUN_STAGES
from kconn.workbench import Workbench


def plan_as_table(bench: Workbench) -> Table:
    """Return one row per stage: steps, how many are there already, bytes, memory and tasks."""
    pending = {step.address for step in bench.pending()}
    table = Table(title=f"{bench.study.study.name}: {len(bench.plan.steps)} steps, {len(pending)} to do")
    for title in ("stage", "steps", "to do", "reads", "writes at most", "memory per worker", "tasks"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in (*RUN_STAGES, *COHORT_STAGES):
        steps = [step for step in bench.plan.steps if step.stage == stage]
        if not steps:
            continue
        todo = [step for step in steps if step.address in pending]
        table.add_row(
            stage,
            str(len(steps)),
            str(len(todo)),
            _bytes(sum(step.estimate.bytes_read for step in todo)),
            _bytes(sum(step.estimate.bytes_written for step in todo)),
            _bytes(max(step.estimate.memory for step in steps)),
            str(sum(step.estimate.n_tasks for step in todo)),
        )
    return table


def plan_as_json(bench: Workbench) -> dict[str, Any]:
    """Return the plan as plain data: every step with inputs, parameters, key, estimate and whether it is published."""
    pending = {step.address for step in bench.pending()}
    steps = [{**asdict(step), "published": step.address not in pending} for step in bench.plan.steps]
    return {"study": bench.study.study.name, "code": bench.plan.code, "steps": steps}


def status_as_table(bench: Workbench) -> Group:
    """Return how many steps of each stage are published, and every exclusion with its reason."""
    pending = {step.address for step in bench.pending()}
    done = Table(title=bench.study.study.name)
    for title in ("stage", "published", "of"):
        done.add_column(title, justify="left" if title == "stage" else "right")
    for stage in (*RUN_STAGES, *COHORT_STAGES):
        steps = [step for step in bench.plan.steps if step.stage == stage]
        if steps:
            done.add_row(stage, str(sum(step.address not in pending for step in steps)), str(len(steps)))
    out = Table(title="left out")
    out.add_column("what")
    out.add_column("why")
    for subject, reason in sorted(bench.plan.left_out.items()):
        out.add_row(f"sub-{subject}", reason)
    for where, reason in excluded_runs(bench).items():
        out.add_row(where, reason)
    return Group(done, out) if out.row_count else Group(done)


def excluded_runs(bench: Workbench) -> dict[str, str]:
    """Return run -> reason, for the runs that were left out after denoising."""
    found: dict[str, str] = {}
    for step in bench.plan.steps:
        if step.stage != "denoise":
            continue
        try:
            if store.is_published(bench.study.store, step.address, step.key):
                reason = cubes.read_attrs(bench.study.store, step.address).get("excluded")
                found |= {step.where: str(reason)} if reason else {}
        except StoreError:
            continue
    return found


def _bytes(n: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.1f} {unit}" if unit == "GB" else f"{n:.0f} {unit}"
        n //= 1000
    return ""
