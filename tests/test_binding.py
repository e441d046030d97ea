"""What a stage reads of the steps before it."""

import numpy as np
import pytest
import xarray as xr

from kconn import execution
from kconn.study.workbench import prepare, writing
from tests.table_study import table_study


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = prepare(table_study(tmp_path_factory.mktemp("binding"), n_subject=3))
    with writing(bench):
        execution.run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    return bench


def job_of(bench, stage):
    return bench.bind(next(step for step in bench.plan.steps if step.stage == stage))


def test_open_each__is_what_open_gives_and_labels_share_memory(bench):
    job = job_of(bench, "cohort")
    found = dict(job.open_each("netmat"))
    assert [path.split("/")[0] for path in found] == ["sub-000", "sub-001", "sub-002"]
    for up in job.step.upstream:
        if up.address.step == "netmat":
            xr.testing.assert_identical(found[up.address.path], job.open(up.address))
    first, second, third = (ds.variables["node_i"] for ds in found.values())
    assert np.shares_memory(first.values, second.values)
    assert np.shares_memory(first.values, third.values)


def test_open_each__reads_what_is_named(bench):
    ((_, ds), *_) = job_of(bench, "quality").open_each("denoise", ("n_kept", "nothing"))
    assert set(ds.variables) == {"n_kept"}
    assert ds.attrs["t_r"] == 2.0
