"""Whole studies on real data, through the shell's own commands."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn import signal
from nilearn.image import resample_to_img
from nilearn.maskers import NiftiLabelsMasker, NiftiSpheresMasker

import kconn
from kconn.cli import main

SCHAEFER = "Schaefer2018_100Parcels_7Networks_order_FSLMNI152_2mm.nii.gz"
RUN = "sub-02/ses-1/run-1"
COSINE = {"detrend": True, "filter": "cosine", "high_pass": 0.008}


def _run(tmp_path, text, capsys, *, code=0):
    study = tmp_path / "study.toml"
    study.write_text(text)
    assert main(["run", str(study), "--workers", "0"]) == code
    return capsys.readouterr()


def _tree(tmp_path):
    return kconn.open_study(tmp_path / "study.zarr")


def test_run__bochum_pain_sensitivity(shared_data, tmp_path, capsys):
    _run(
        tmp_path,
        f"""
schema_version = 1
[study]
name = "Bochum"
[inputs]
layout = "tables"
root = "{shared_data / "rpn_bochum"}"
pattern = "regional_timeseries/bochum-{{subject}}_pumi-*.tsv"
fd_pattern = "framewise_displacement/FD_bochum-{{subject}}_pumi-*.txt"
orientation = "time-by-node"
has_header = true
t_r = 2.5
participants = "{shared_data / "rpn_bochum" / "bochum_sample.csv"}"
participants_id = "ID"
participants_id_format = "{{:03d}}"
include = {{ Excluded = 0 }}
[denoise]
confounds = "none"
high_pass = "none"
fd_threshold = 0.15
[nodes.mist122]
columns = "all"
exclude = ["GlobSig"]
[connectivity]
kinds = ["ridgep"]
rho = 0.1
[contrasts.pain]
test = "covariate"
formula = "mean_QST_pain_sensitivity + Age + Male"
effect = "mean_QST_pain_sensitivity"
[permutation]
n_perm = 5000
seed = 7
""",
        capsys,
    )
    tree = _tree(tmp_path)
    result = tree["contrasts/mist122/ridgep/pain"].to_dataset()
    people = pd.read_csv(shared_data / "rpn_bochum" / "bochum_sample.csv")
    n_included = int((people["Excluded"] == 0).sum())
    assert result.sizes["edge"] == 7381
    assert 0 < result.attrs["n_observation"] <= n_included
    assert "GlobSig" not in result["node_i"].to_numpy()
    p = result["p_fwe"].to_numpy()
    tested = np.isfinite(p)
    assert tested.mean() > 0.9
    assert (p[tested] >= 1 / 5000).all()
    assert (p[tested] <= 1).all()
    assert (p[tested] >= result["p_unc"].to_numpy()[tested]).all()

    # The design is joined by label: an ordinary least-squares fit of one edge gives the same t.
    cube = tree["cohort/mist122/ridgep"].to_dataset()
    table = people.assign(subject=[f"{i:03d}" for i in people["ID"]]).set_index("subject")
    table = table.loc[cube["subject"].to_numpy().astype(str)]
    X = np.column_stack([table["mean_QST_pain_sensitivity"], table["Age"], table["Male"], np.ones(len(table))])
    i_edge = int(np.flatnonzero(tested)[100])
    y = cube["netmat"].to_numpy()[:, i_edge]
    beta, rss = np.linalg.lstsq(X, y)[:2]
    se = np.sqrt(rss[0] / (len(y) - 4) * np.linalg.inv(X.T @ X)[0, 0])
    np.testing.assert_allclose(result["stat"].to_numpy()[i_edge], beta[0] / se, rtol=1e-9)

    quality = tree["cohort"].to_dataset()
    assert (quality["n_kept"] <= quality["n_frames"]).all()
    html = (tmp_path / "report.html").read_text()
    assert "L_IPlob_2" in html  # the repeated column name is told


def test_run__hcp_group_mean_and_split_half(shared_data, tmp_path, capsys):
    half = pd.DataFrame({"participant_id": [f"{i:03d}" for i in range(12)], "half": ["a", "b"] * 6})
    half.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    _run(
        tmp_path,
        f"""
schema_version = 1
[study]
name = "HCP"
[inputs]
layout = "tables"
root = "{shared_data / "hcp12_dk70"}"
pattern = "{{subject}}/rfMRI_REST1_LR_BOLD.csv"
orientation = "time-by-node"
has_header = false
t_r = 0.72
participants = "participants.tsv"
[denoise]
confounds = "none"
high_pass = 0.008
[nodes.dk70]
columns = "all"
[connectivity]
kinds = ["corr", "partial"]
[contrasts.split-half]
test = "two-sample"
formula = "half"
effect = "half"
[permutation]
n_perm = 5000
""",
        capsys,
    )
    tree = _tree(tmp_path)
    cube = tree["cohort/dk70/corr"].to_dataset()
    assert cube.sizes == {"observation": 12, "edge": 70 * 69 // 2}
    result = tree["contrasts/dk70/corr/split-half"].to_dataset()
    assert bool(result["exhaustive"])
    assert int(result["n_distinct"]) == 924  # 12 choose 6
    assert float(result["p_fwe"].min()) > 0.01

    dead = {"4", "39"}  # corpus callosum, columns 3 and 38 from 0
    i, j = (cube[name].to_numpy().astype(str) for name in ("node_i", "node_j"))
    alive = np.array([not {a, b} & dead for a, b in zip(i, j, strict=True)])
    mean = np.tanh(cube["netmat"].mean("observation").to_numpy()[alive])
    published = _published_dk68(shared_data)
    assert np.corrcoef(mean, published)[0, 1] > 0.9


def _published_dk68(shared_data):
    """Return the upper triangle of the published group matrix; both list the left hemisphere first, in one order."""
    matrix = np.loadtxt(shared_data / "hcp_group_fc" / "funcMatrix_ctx.csv", delimiter=",")
    return matrix[np.triu_indices(68, 1)]


def _stages8(shared_data, kinds):
    return f"""
schema_version = 1
[study]
name = "STAGES"
[inputs]
layout = "tables"
root = "{shared_data / "stages8"}"
pattern = "ses-{{session}}/ts_sub-{{subject}}_ses-{{session}}.txt"
orientation = "node-by-time"
has_header = false
t_r = 0.8
[denoise]
confounds = "none"
high_pass = "none"
[nodes.regions419]
columns = "all"
[connectivity]
kinds = {json.dumps(kinds)}
[contrasts.visits]
test = "paired"
change = ["1", "2"]
"""


def test_run__stages_unregularised_partial_is_refused_before_compute(shared_data, tmp_path, capsys):
    said = _run(tmp_path, _stages8(shared_data, ["partial"]), capsys, code=1)
    assert "E-NETMAT-RANK" in said.err
    assert "419" in said.err
    assert "ridgep" in said.err
    assert "Traceback" not in said.err + said.out
    assert not (tmp_path / "study.zarr").exists()


def test_run__stages_paired_test_of_eight_is_exhaustive(shared_data, tmp_path, capsys):
    _run(tmp_path, _stages8(shared_data, ["ridgep"]), capsys)
    result = _tree(tmp_path)["contrasts/regions419/ridgep/visits"].to_dataset()
    assert int(result["n_distinct"]) == 256
    assert bool(result["exhaustive"])
    assert result.sizes["edge"] == 419 * 418 // 2
    p = result["p_unc"].to_numpy()
    counts = p[np.isfinite(p)] * 256
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    assert float(result["p_fwe"].min()) >= 2 / 256  # two-sided: every flip has its mirror


CENTRE = (0.0, -20.0, 20.0)


@pytest.fixture(scope="module")
def studyforrest(shared_data, tmp_path_factory):
    """Return the image and the store of one real run that went through `kconn run`."""
    folder = shared_data / "studyforrest_bold"
    study = tmp_path_factory.mktemp("studyforrest") / "study.toml"
    study.write_text(f"""
schema_version = 1
[study]
name = "studyforrest"
[inputs]
layout = "images"
root = "{folder}"
pattern = "sub-{{subject}}_task-objectcategories_run-{{run}}_bold.nii.gz"
mask = "none"
[denoise]
confounds = "none"
high_pass = 0.008
[nodes.schaefer100]
atlas = "{shared_data / "atlases" / SCHAEFER}"
resample = true
min_coverage = 0
[nodes.ball]
spheres = [["ball", {CENTRE[0]}, {CENTRE[1]}, {CENTRE[2]}], ["other", 10.0, -20.0, 20.0]]
radius_mm = 8
[connectivity]
kinds = ["corr"]
""")
    assert main(["run", str(study), "--workers", "0"]) == 0
    image = nib.load(folder / "sub-02_task-objectcategories_run-1_bold.nii.gz")
    return image, kconn.open_study(study.with_name("study.zarr"))


def test_run__studyforrest_denoised_equals_nilearn_clean(studyforrest):
    image, tree = studyforrest
    run = tree[RUN].to_dataset()
    raw = np.asarray(image.dataobj)[tuple(run[axis].to_numpy() for axis in "ijk")]
    np.testing.assert_array_equal(run["bold"], raw)  # every voxel, bit for bit

    pick = np.sort(np.random.default_rng(0).choice(len(raw), 5000, replace=False))
    ours = run["denoised"].isel(voxel=pick).to_numpy()
    alive = ~np.isnan(ours).any(axis=1)
    theirs = signal.clean(raw[pick][alive].T.astype(np.float64), standardize=None, t_r=2.0, **COSINE).T
    assert alive.sum() > 1000
    np.testing.assert_allclose(ours[alive], theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_run__studyforrest_nodes_equal_nilearn_maskers(studyforrest, shared_data):
    image, tree = studyforrest
    atlas = shared_data / "atlases" / SCHAEFER
    labels = resample_to_img(atlas, image, interpolation="nearest", force_resample=True, copy_header=True)
    options = {"standardize": None, "detrend": True, "high_pass": 0.008, "t_r": 2.0}
    clean_args = {"filter": "cosine"}
    masker = NiftiLabelsMasker(labels, resampling_target=None, clean_args=clean_args, **options)
    expected = masker.fit_transform(image)
    values = [int(value) for value in np.unique(np.asarray(labels.dataobj)) if value]
    nodes = tree[f"{RUN}/schaefer100"].to_dataset()
    whole = nodes["coverage"].to_numpy() == 1  # nilearn averages voxels without signal as well
    assert whole.sum() > 20
    columns = [values.index(int(name)) for name in nodes["node"].to_numpy()[whole]]
    actual = nodes["timeseries"].to_numpy()[whole]
    np.testing.assert_allclose(actual, expected[:, columns].T, rtol=0, atol=1e-4 * np.abs(expected).max())

    # On an integer image nilearn 0.14 rounds the mean of a sphere to an integer.
    as_float = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
    ball = NiftiSpheresMasker([CENTRE], radius=8, clean_args=clean_args, **options).fit_transform(as_float)
    series = tree[f"{RUN}/ball"].to_dataset()["timeseries"].to_numpy()[0]
    np.testing.assert_allclose(series, ball[:, 0], rtol=0, atol=1e-4 * np.abs(ball).max())


def test_run__studyforrest_netmat_is_the_correlation_of_its_series(studyforrest):
    _, tree = studyforrest
    nodes = tree[f"{RUN}/schaefer100"].to_dataset()
    netmat = tree[f"{RUN}/schaefer100/corr"].to_dataset()["netmat"].to_numpy()
    series = nodes["timeseries"].to_numpy()
    alive = ~np.isnan(series).any(axis=1)
    i, j = np.triu_indices(len(series), 1)
    both = alive[i] & alive[j]
    assert np.isnan(netmat[~both]).all()
    np.testing.assert_allclose(np.tanh(netmat[both]), np.corrcoef(series)[i, j][both], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_run__bochum_blocks_variance_groups_f_and_components(shared_data, tmp_path, capsys):
    people = pd.read_csv(shared_data / "rpn_bochum" / "bochum_sample.csv")
    people["Half"] = np.where(people["Age"] > people["Age"].median(), "older", "younger")
    people["Block"] = people["Male"] + 1
    people.to_csv(tmp_path / "people.csv", index=False)
    _run(
        tmp_path,
        f"""
[study]
name = "Bochum"
[inputs]
layout = "tables"
root = "{shared_data / "rpn_bochum"}"
pattern = "regional_timeseries/bochum-{{subject}}_pumi-*.tsv"
orientation = "time-by-node"
has_header = true
t_r = 2.5
participants = "people.csv"
participants_id = "ID"
participants_id_format = "{{:03d}}"
include = {{ Excluded = 0 }}
[denoise]
confounds = "none"
high_pass = "none"
[nodes.mist122]
columns = "all"
exclude = ["GlobSig"]
[connectivity]
kinds = ["corr"]
[permutation]
n_perm = 300
seed = 7
[contrasts.age-groups]
test = "two-sample"
formula = "Half + mean_QST_pain_sensitivity"
effect = "Half"
levels = ["younger", "older"]
exchangeability_blocks = "Block"
variance_groups = "Half"
statistic = "nbs"
threshold = 2.3
[contrasts.anything]
test = "f-test"
formula = "mean_QST_pain_sensitivity + Age + Male"
effect = ["mean_QST_pain_sensitivity", "Age"]
exchangeability_blocks = "Block"
""",
        capsys,
    )
    tree = _tree(tmp_path)
    table = people.assign(subject=[f"{i:03d}" for i in people["ID"]]).set_index("subject")
    netmat = tree["cohort/mist122/corr"].to_dataset()["netmat"]

    components = tree["contrasts/mist122/corr/age-groups"].to_dataset()
    ids = components["observation"].to_numpy().astype(str)
    block = table.loc[ids, "Block"].to_numpy()
    shuffled = components["permutation_table"].to_numpy()
    assert (block[shuffled] == block).all()  # nobody leaves the own block
    assert components["stat_kind"].item() == "v"
    assert components.attrs["exchange"] == "within each of 2 blocks"
    sizes = components["enhanced"].to_numpy()
    beyond = np.abs(components["zstat"].to_numpy()) >= 2.3
    np.testing.assert_array_equal(sizes > 0, beyond)
    np.testing.assert_allclose(np.nanmax(sizes), components["max_stat"].to_numpy()[0])

    # F of two covariates is that of nested least-squares models.
    result = tree["contrasts/mist122/corr/anything"].to_dataset()
    ids = result["observation"].to_numpy().astype(str)
    rows = table.loc[ids]
    smaller = np.column_stack([np.ones(len(rows)), rows["Male"]])
    larger = np.column_stack([smaller, rows["mean_QST_pain_sensitivity"], rows["Age"]])
    i_edge = int(np.flatnonzero(np.isfinite(result["p_fwe"].to_numpy()))[50])
    place = pd.Index(tree["cohort/mist122/corr"]["subject"].to_numpy().astype(str)).get_indexer(pd.Index(ids))
    y = netmat.to_numpy()[place, i_edge]
    rss = [np.linalg.lstsq(columns, y)[1][0] for columns in (smaller, larger)]
    expected = (rss[0] - rss[1]) / 2 / (rss[1] / (len(y) - 4))
    np.testing.assert_allclose(result["stat"].to_numpy()[i_edge], expected, rtol=1e-9)

    html = (tmp_path / "report.html").read_text()
    assert "within each of 2 blocks" in html
    assert "components of edges with z of at least 2.3" in html
    assert main(["export", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 0
    clusters = pd.read_csv(next((tmp_path / "out/group").glob("*ageGroups_clusters.tsv")), sep="\t")
    assert clusters["n_features"].sum() == beyond.sum()
    assert clusters["p_fwe"].between(1 / 300, 1).all()
