"""Studies of the size of HCP and UK Biobank, planned from what is known of their runs alone."""

import gc
import time
import tracemalloc
from dataclasses import replace

import pytest
import xarray as xr

from kconn.cluster import connect
from kconn.errors import ResourceError
from kconn.study.plan import make_plan
from kconn.study.workbench import prepare, refuse_what_does_not_fit
from tests.held_memory import held_while_running
from tests.small_study import small_study, write_study
from tests.table_study import steps_of, table_study

pytestmark = pytest.mark.faults("scale")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A small study, whose first run lends its files to thousands that exist on paper."""
    folder = tmp_path_factory.mktemp("scale")
    small_study(folder, n_subjects_per_group=1)
    return prepare(
        write_study(
            folder,
            contrasts={"groups": None, "mean": {"test": "one-sample"}},
            permutation={"n_perm": 5000},
        )
    )


def on_paper(bench, n_run, n_voxel, n_time):
    """Return the survey of a study of so many runs of that size."""
    facts = bench.survey.runs[0]
    runs = tuple(
        replace(
            facts,
            run=replace(facts.run, subject=f"{i // 4:06d}", run=str(i % 4 + 1)),
            n_voxel=n_voxel,
            n_time=n_time,
            itemsize=4,
            n_bytes=2 * n_voxel * n_time,
        )
        for i in range(n_run)
    )
    coords = {"sim": xr.Dataset(coords={"node": [f"{i}" for i in range(100)]})}
    return replace(bench.survey, runs=runs, node_coords=coords)


def plan_of(bench, survey):
    """Return the plan, and the seconds that the processor took for it."""
    gc.collect()
    started = time.process_time()
    plan = make_plan(bench.study, survey)
    seconds = time.process_time() - started
    return plan, seconds


@pytest.mark.parametrize(
    ("name", "n_run", "n_voxel", "n_time"),
    [
        pytest.param("HCP", 4_400, 91_282, 1_200, marks=pytest.mark.slow),
        pytest.param("UK Biobank", 50_000, 230_000, 490, marks=pytest.mark.slow),
        ("small", 400, 91_282, 1_200),
    ],
)
def test_make_plan__of_a_large_study_is_reported_from_metadata(bench, name, n_run, n_voxel, n_time, record_property):
    plan, seconds = plan_of(bench, on_paper(bench, n_run, n_voxel, n_time))
    assert len(plan.runs()) == n_run
    assert len(plan.steps) == 4 * n_run + 6
    written = sum(step.estimate.bytes_written for step in plan.steps)
    assert written > n_run * 2 * 4 * n_voxel * n_time
    memory = max(step.estimate.memory for step in plan.steps)
    assert memory < 3 * 2**30
    found = {
        "steps": len(plan.steps),
        "TB read": round(sum(step.estimate.bytes_read for step in plan.steps) / 1e12, 2),
        "TB written at most": round(written / 1e12, 2),
        "tasks": sum(step.estimate.n_tasks for step in plan.steps),
        "MB per worker": round(memory / 1e6),
        "hours on 1, 16, 128 workers": [round(plan.hours(n), 1) for n in (1, 16, 128)],
        "planned in s": round(seconds, 1),
    }
    record_property(name, found)
    assert plan.hours(1) > plan.hours(16) > plan.hours(128) > 0


@pytest.mark.slow
def test_make_plan__takes_time_and_memory_in_proportion_to_the_runs(bench, count):
    seconds = {n: _plan_seconds(bench, n, repeats) / n for n, repeats in {4_400: 3, 50_000: 2}.items()}
    held = {n: _plan_bytes(bench, n) / n for n in (1_000, 4_000)}
    time_ratio, memory_ratio = seconds[50_000] / seconds[4_400], held[4_000] / held[1_000]
    count(time_per_run_ratio=round(time_ratio, 3), memory_per_run_ratio=round(memory_ratio, 3))
    assert memory_ratio == pytest.approx(1, abs=0.2)
    assert time_ratio == pytest.approx(1, abs=0.2)


def _plan_seconds(bench, n_run, repeats):
    survey = on_paper(bench, n_run, 91_282, 1_200)
    return min(plan_of(bench, survey)[1] for _ in range(repeats))


def _plan_bytes(bench, n_run):
    survey = on_paper(bench, n_run, 91_282, 1_200)
    tracemalloc.start()
    plan = make_plan(bench.study, survey)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan.runs()) == n_run
    return highest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_run__of_many_runs_holds_no_more_than_of_few(tmp_path, count):
    few, many = (_run_on_workers(tmp_path / str(n), n) for n in (200, 1_000))
    count(runs=1_000, **{f"MB of the {name}": round(many[name] / 1e6) for name in many})
    assert many["workers"] < 1.15 * few["workers"]
    # The command keeps the plan.
    assert many["command"] - few["command"] < 250e3 * (1_000 - 200)


def _run_on_workers(folder, n_run):
    """Run a study of so many runs on two workers; return the most that the command held, and a worker."""
    study = table_study(folder, n_subject=n_run)
    held = held_while_running(study)
    assert len(steps_of(study)) == 4 * n_run + 6
    return {
        "command": max(one.command for one in held),
        "workers": max(max(one.workers, default=0) for one in held),
    }


@pytest.mark.faults("memory")
def test_refuse_what_does_not_fit__before_any_compute(bench, count):
    large = replace(bench, survey=on_paper(bench, 4, 91_282, 40_000))
    large = replace(large, plan=make_plan(large.study, large.survey))
    with connect(n_workers=1) as client:
        (limit,) = [worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()]
        refuse_what_does_not_fit(bench, client)
        assert max(step.estimate.memory for step in large.plan.steps) > limit
        with pytest.raises(ResourceError) as caught:
            refuse_what_does_not_fit(large, client)
    assert caught.value.code == "E-MEM"
    assert "denoise needs about " in caught.value.problem
    count(refused_at_planning=1)
