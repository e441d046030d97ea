"""Plan and status as tables for the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from kconn.errors import StoreError
from kconn.exclusions import EVERYTHING, list_exclusions
from kconn.io import cubes, store
from kconn.stages.running import ALPHA, LEVEL, Running, find_running
from kconn.study.plan import COHORT_STAGES, RUN_STAGES, TEST_STAGES, Plan, Step
from kconn.study.workbench import Workbench

#: Seconds between two looks at a study that is watched.
_PAUSE: Final = 2.0


def plan_as_table(bench: Workbench, *, n_workers: int) -> Table:
    """Return one row per stage: steps, how many are there already, bytes, memory, tasks, hours of one core and of N."""
    pending = {step.address for step in bench.pending()}
    table = Table(title=f"{bench.study.study.name}: {len(bench.plan.steps)} steps, {len(pending)} to do")
    for title in ("stage", "steps", "to do", "reads", "writes at most", "memory per worker", "tasks", "core hours"):
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
            f"{sum(step.estimate.seconds for step in todo) / 3600:.2f}",
        )
    left = Plan(steps=tuple(step for step in bench.plan.steps if step.address in pending), code=bench.plan.code)
    hours = ", ".join(f"{left.hours(n):.2g} h on {n}" for n in sorted({1, n_workers, 4 * n_workers}))
    table.caption = f"about {hours} workers of one core"
    return table


def plan_as_json(bench: Workbench) -> dict[str, Any]:
    """Return the plan as plain data: every step with inputs, parameters, key, estimate and whether it is published."""
    pending = {step.address for step in bench.pending()}
    steps = [{**asdict(step), "published": step.address not in pending} for step in bench.plan.steps]
    return {"study": bench.study.study.name, "code": bench.plan.code, "steps": steps}


def watch_status(bench: Workbench, console: Console) -> None:
    """Show the status of a study until every result is there; what another process publishes appears by itself."""
    left = bench.pending()
    with Live(status_as_table(bench, left), console=console, auto_refresh=False) as live:
        while left:
            time.sleep(_PAUSE)
            left = bench.missing(left)
            live.update(status_as_table(bench, left), refresh=True)


def status_as_table(bench: Workbench, left: Sequence[Step] | None = None) -> Group:
    """Return how many steps of each stage are published, how far tests are, and every exclusion with its reason.

    Parameters
    ----------
    bench
        The study.
    left
        The steps that are not published, where that is known.
    """
    left = bench.pending() if left is None else left
    pending = {step.address for step in left}
    done = Table(title=bench.study.study.name)
    for title in ("stage", "published", "of"):
        done.add_column(title, justify="left" if title == "stage" else "right")
    for stage in (*RUN_STAGES, *COHORT_STAGES):
        steps = [step for step in bench.plan.steps if step.stage == stage]
        if steps:
            done.add_row(stage, str(sum(step.address not in pending for step in steps)), str(len(steps)))
    begun = Table(title="tests begun")
    for title in (
        "contrast",
        "permutations",
        "of",
        f"corrected p <= {ALPHA} from",
        f"{LEVEL:.0%} limits",
        "last range",
    ):
        begun.add_column(title, justify="left" if title in {"contrast", "last range"} else "right")
    for test in find_running(bench.study.store, left):
        at = test.threshold
        ended = datetime.fromtimestamp(test.last, tz=UTC).isoformat(timespec="seconds")
        shown = "-" if np.isnan(at.value) else f"{at.value:.4g}"
        limits = "-" if np.isinf([at.lower, at.upper]).all() else f"{at.lower:.4g} to {at.upper:.4g}"
        begun.add_row(_told(test), f"{test.n_done:,}", f"{test.n_perm:,}", shown, limits, ended)
    stopping = Table(title="features stop by themselves: p_unc and p_fdr, no corrected p; nothing is kept on the way")
    stopping.add_column("contrast")
    stopping.add_column("relabellings as extreme that a feature stops at", justify="right")
    for where, n_exceed in _stopping(bench).items():
        stopping.add_row(where, str(n_exceed))
    out = Table(title="left out")
    out.add_column("what")
    out.add_column("why")
    for where, reason in _left_out(bench, left).items():
        out.add_row(where, reason)
    return Group(done, *(table for table in (begun, stopping, out) if table.row_count))


def status_as_json(bench: Workbench) -> dict[str, Any]:
    """Return the same as plain data; limits that are not known yet are null."""
    left = bench.pending()
    pending = {step.address for step in left}
    stages = {
        stage: {
            "published": sum(step.stage == stage and step.address not in pending for step in bench.plan.steps),
            "of": sum(step.stage == stage for step in bench.plan.steps),
        }
        for stage in (*RUN_STAGES, *COHORT_STAGES)
    }
    begun = {
        _told(test): {
            "permutations": test.n_done,
            "of": test.n_perm,
            "alpha": ALPHA,
            "threshold": _known(test.threshold.value),
            "limits": [_known(test.threshold.lower), _known(test.threshold.upper)],
            "level": LEVEL,
            "last_range": test.last,
        }
        for test in find_running(bench.study.store, left)
    }
    return {
        "study": bench.study.study.name,
        "stages": stages,
        "tests_begun": begun,
        "tests_stopping": _stopping(bench),
        "left_out": _left_out(bench, left),
    }


def _told(test: Running) -> str:
    return f"{test.where}, {test.part}" if test.part else test.where


def _stopping(bench: Workbench) -> dict[str, int]:
    """Return contrast -> the exceedances that its features stop at, for those that have no corrected p."""
    found = {
        step.where: step.params["permutation"]["stopping"] for step in bench.plan.steps if step.stage in TEST_STAGES
    }
    return {where: n_exceed for where, n_exceed in found.items() if n_exceed != "none"}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _left_out(bench: Workbench, left: Sequence[Step]) -> dict[str, str]:
    """Return what was left out -> why: as much as is known of a study that was not run to its end."""
    if left:
        subjects = {f"sub-{subject}": reason for subject, reason in sorted(bench.plan.left_out.items())}
        return subjects | excluded_runs(bench)
    found: dict[str, list[str]] = {}
    for exclusion in list_exclusions(bench):
        of = "" if exclusion.left_out_of == EVERYTHING else f"{exclusion.left_out_of}: "
        found.setdefault(exclusion.where, []).append(of + exclusion.reason)
    return {where: "; ".join(reasons) for where, reasons in found.items()}


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
