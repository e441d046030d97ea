"""Features that stop by themselves, from the study file to status, report and export: no corrected p, and said so."""

import json

import numpy as np
import pandas as pd

from kconn.cli import main
from kconn.io import cubes
from kconn.io.store import Address
from tests.small_study import small_study

GROUPS = {"test": "two-sample", "formula": "group", "effect": "group"}


def test_stopping__is_told_by_status_report_and_export(tmp_path, capsys):
    study = small_study(
        tmp_path / "study",
        n_subjects_per_group=4,
        permutation={"n_perm": 60},
        contrasts={"groups": {**GROUPS, "stopping": 3}},
    )
    assert main(["status", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tests_stopping"] == {"contrasts/sim/corr/groups": 3}
    assert main(["run", str(study), "--workers", "0"]) == 0
    result = cubes.open_group(study.parent / "study.zarr", Address(path="contrasts/sim/corr/groups", step="test"))
    assert result.attrs["n_exceed"] == 3
    assert np.isnan(result["p_fwe"]).all()
    assert 1 < int(result["n_used"].min()) < 60
    report = (study.parent / "report.html").read_text()
    assert "no p corrected for family-wise error" in report
    assert "false discovery rate &lt; .05" in report
    assert "Besag, Clifford" in report
    assert "p FWE" not in report
    capsys.readouterr()
    assert main(["status", str(study)]) == 0
    assert "no corrected p" in " ".join(capsys.readouterr().out.split())
    assert main(["export", str(study), "--out", str(tmp_path / "out")]) == 0
    names = {path.name.partition("_desc-groups_")[2] for path in (tmp_path / "out").rglob("*_desc-groups_*.tsv")}
    assert names == {"edges.tsv", "tstat.tsv", "pfdr.tsv", "design.tsv"}
    (edges,) = (tmp_path / "out").rglob("*_desc-groups_edges.tsv")
    table = pd.read_csv(edges, sep="\t")
    np.testing.assert_allclose(table["p_unc"], result["p_unc"], rtol=1e-12)
    np.testing.assert_array_equal(table["n_used"], result["n_used"])
    told = json.loads(edges.with_suffix(".json").read_text())
    assert "no p_fwe" in told["Stopping"]
    assert told["PValues"].startswith("h / l")
