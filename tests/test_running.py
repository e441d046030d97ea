"""How far a test is, read from what is kept of it: of patterns of missing observations and of several contrasts."""

import numpy as np
import pytest

from kconn.infer.hypotheses import TESTED
from kconn.infer.inference import permutation_test
from kconn.io import checkpoints
from kconn.io.store import Address
from kconn.kernels import tasks
from kconn.stages.running import bind_checkpoint, find_running
from kconn.study.plan import Estimate, Step

N_OBS = 20


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch):
    """Cut small tests as large ones are cut."""
    monkeypatch.setattr(tasks, "TASK_FLOPS", dict.fromkeys(tasks.TASK_FLOPS, 1e4))


@pytest.fixture
def step():
    path = "contrasts/sim/corr/groups"
    params = {"permutation": {"alternative": "two-sided"}}
    return Step(
        stage="test",
        address=Address(path=path, step="test"),
        key="0" * 32,
        where=path,
        files={},
        upstream=(),
        params=params,
        digests={},
        estimate=Estimate(),
    )


def begin(root, step, contrasts, *, n_missing=0, **options):
    """Test, and forget one range of each test as a kill would."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(N_OBS, 40))
    data[:n_missing, :10] = np.nan
    design = np.column_stack([np.ones(N_OBS), np.arange(N_OBS) % 2, rng.normal(size=N_OBS)])
    checkpoint = bind_checkpoint(root, step)
    result = permutation_test(data, design, contrasts, n_perm=400, seed=1, checkpoint=checkpoint, **options)
    folder = checkpoints.step_folder(root, step.address, step.key)
    digests = {path.name.partition("-")[0] for path in folder.iterdir()}
    for digest in digests:
        for path in sorted(folder.glob(f"{digest}-*"))[-2:]:
            path.unlink()
    return result


def test_find_running__tells_patterns_of_missing_observations_apart(tmp_path, step):
    begin(tmp_path, step, {TESTED: [0, 1, 0]}, n_missing=3, missing="refit")
    found = sorted(find_running(tmp_path, [step]), key=lambda test: test.part)
    assert [test.part for test in found] == ["pattern 1 of 2: 20 observations", "pattern 2 of 2: 17 observations"]
    for test in found:
        assert 1 < test.n_done < test.n_perm == 400
        assert np.isnan(test.threshold.value)  # the maximum of a study is over all of its patterns
        assert str(test) == f"{test.part}: {test.n_done} of 400 permutations"


def test_find_running__tells_a_refit_without_missing_observations_as_a_whole(tmp_path, step):
    begin(tmp_path, step, {TESTED: [0, 1, 0]}, missing="refit")
    (test,) = find_running(tmp_path, [step])
    assert (test.where, test.part) == (step.where, "")
    assert np.isfinite(test.threshold.value)


def test_find_running__names_each_contrast_of_a_design(tmp_path, step):
    result = begin(tmp_path, step, {"group": [0, 1, 0], "age": [0, 0, 1]})
    found = {test.where: test for test in find_running(tmp_path, [step])}
    assert set(found) == {f"{step.where}: group", f"{step.where}: age"}
    for name in ("group", "age"):
        highest = result["max_stat"].sel(contrast=name).to_numpy()
        test = found[f"{step.where}: {name}"]
        assert test.threshold.lower <= np.sort(highest)[-20] <= test.threshold.upper
