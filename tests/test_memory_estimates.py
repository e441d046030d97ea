"""What the plan says that a step needs, against what a worker was seen to take."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest
from distributed.diagnostics.plugin import WorkerPlugin

from kconn.cluster import connect
from kconn.execution import run_plan
from kconn.study.plan import RUN_STAGES
from kconn.study.workbench import prepare, writing
from kconn.testing import simulate_study
from tests.small_study import write_study

pytestmark = [pytest.mark.slow, pytest.mark.faults("memory"), pytest.mark.timeout(1200)]

N_NODE, N_TIME, GRID = 50, 300, (72, 86, 72)


class Peaks(WorkerPlugin):
    """Notes the highest resident memory of a worker during every step."""

    def __init__(self, path):
        self._path = path

    def setup(self, worker):  # noqa: ARG002 - the signature of Dask
        stages = importlib.import_module("kconn.stages").STAGES  # the worker's own: a global would be a copy
        for name in RUN_STAGES:
            stages[name] = self._noting(stages[name], name)

    def _noting(self, stage, name):
        def noted(job):
            Path("/proc/self/clear_refs").write_text("5")  # the highest is now the present
            stage(job)
            peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
            with self._path.open("a") as file:
                line = {"stage": name, "where": job.step.where, "estimate": job.step.estimate.memory, "peak": peak}
                file.write(json.dumps(line) + "\n")

        return noted


def test_estimates__are_near_what_a_worker_takes(tmp_path, count, record_property):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not tell the highest memory of a process")
    simulate_study(
        tmp_path / "derivatives",
        n_subjects_per_group=1,
        sessions=("pre",),
        n_nodes=N_NODE,
        n_time=N_TIME,
        t_r=0.8,
        grid_shape=GRID,
        n_effect_edges=1,
        n_high_motion_runs=0,
    )
    study = write_study(
        tmp_path,
        denoise={"confounds": "36P", "high_pass": 0.01, "low_pass": 0.1},
        contrasts={"groups": None, "mean": {"test": "one-sample"}},
    )
    bench = prepare(study)
    with connect(n_workers=1) as client, writing(bench):
        client.register_plugin(Peaks(tmp_path / "peaks"))
        run_plan(bench.plan, bench.bind, client=client, listen=lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / "peaks").read_text().splitlines()]
    assert len(lines) == 8
    ratios = {line["stage"]: line["estimate"] / line["peak"] for line in lines}
    for stage, ratio in ratios.items():
        record_property(f"{stage}, estimate over peak", round(ratio, 2))
    count(estimates=len(ratios), within_30_percent=sum(0.7 < ratio < 1.3 for ratio in ratios.values()))
    assert all(0.7 < ratio < 1.3 for ratio in ratios.values()), lines
