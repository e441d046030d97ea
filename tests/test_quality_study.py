"""A motion artefact that both groups share: QC-FC shows it, denoising takes it out, and a planted edge stays."""

import pytest

from kconn.execution import run_plan
from kconn.io import cubes
from kconn.study.workbench import prepare, writing
from kconn.testing import simulate_study
from tests.small_study import ATLAS, write_study


@pytest.mark.slow
def test_study__planted_motion_leaves_qc_fc_after_36p_and_censoring_and_a_planted_edge_survives(tmp_path):
    trial = simulate_study(
        tmp_path / "derivatives",
        n_subjects_per_group=14,
        sessions=("pre",),
        n_nodes=14,
        n_time=400,
        grid_shape=(10, 12, 10),
        n_effect_edges=1,
        effect_size=0.5,
        n_high_motion_runs=0,
        motion_artefact=4.0,
        seed=4,
    )
    study = write_study(
        tmp_path,
        denoise={"confounds": "36P", "high_pass": 0.01, "low_pass": "none", "fd_threshold": 0.5},
        nodes={"sim": {"atlas": ATLAS, "labels": ATLAS.replace(".nii.gz", ".tsv")}},
        permutation={"n_perm": 500, "seed": 1},
    )
    bench = prepare(study)
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    found, test = (
        cubes.open_group(bench.study.store, next(s.address for s in bench.plan.steps if s.stage == stage))
        for stage in ("qcfc", "test")
    )

    for name in ("qc_fc_median", "qc_fc_share"):
        assert found[f"{name}_before"] > found[f"{name}_chance_before"][1]
        assert found[f"{name}_chance"][0] <= found[name] <= found[f"{name}_chance"][1]
    # Near nodes share the artefact more than far ones do.
    assert found["qc_fc_distance_before"] < found["qc_fc_distance_chance_before"][0]
    assert found["qc_fc_distance_chance"][0] < found["qc_fc_distance"] < found["qc_fc_distance_chance"][1]

    (planted,) = trial.read_truth().to_dict("records")
    significant = test["p_fwe"].to_numpy() < 0.05
    pairs = zip(test["node_i"].to_numpy()[significant], test["node_j"].to_numpy()[significant], strict=True)
    assert [{i, j} for i, j in pairs] == [{planted["node_i"], planted["node_j"]}]
