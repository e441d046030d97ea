"""Exported maps: opened with nibabel, on the grid or grayordinates of the input and with the numbers of the store."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from kconn.execution import run_plan
from kconn.export.maps import MapWriter, label_nodes, list_map_images
from kconn.export.study import export_study
from kconn.io import cubes
from kconn.io.store import Address
from kconn.study.workbench import prepare, writing
from tests.small_study import HCP_ATLAS, copy_hcp_study, write_study
from tests.test_map_stages import AFFINE, GROUPS, PLANTED, SHAPE, write_trial

VOXEL = {**GROUPS, "levels": ["a", "b"]}
CLUSTER = {**VOXEL, "statistic": "cluster-extent", "threshold": 2.0, "neighbours": 26}
SPHERES = [["left M1", -20.0, -20.0, -10.0], ["Left-m1", 20.0, -20.0, 10.0]]


def opened(bench, path, step):
    return cubes.open_group(bench.study.store, Address(path=path, step=step))


def exported(study):
    bench = prepare(study)
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    export_study(bench, study.parent / "out")
    return bench, study.parent / "out"


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Run a small trial of images without signal in a plane, with two tests; its export."""
    folder = tmp_path_factory.mktemp("volume")
    write_trial(folder)
    for path in (folder / "runs").glob("*.nii.gz"):
        if "run-2" in path.name or int(path.name[4:6]) > 6:
            path.unlink()
            continue
        image = nib.load(path)
        data = np.asarray(image.dataobj).copy()
        data[..., 4, :] = 0  # outside the brain
        nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
    people = pd.read_table(folder / "participants.tsv").head(6)
    people.to_csv(folder / "participants.tsv", sep="\t", index=False)
    nodes = {"sim": None, "seeds": {**PLANTED["nodes"]["seeds"], "spheres": SPHERES}}
    contrasts = {"groups": VOXEL, "in-clusters": CLUSTER}
    return exported(
        write_study(folder, **{**PLANTED, "nodes": nodes, "contrasts": contrasts, "permutation": {"n_perm": 40}})
    )


def values_at(image, ds):
    return np.asarray(image.dataobj)[tuple(ds[axis].to_numpy() for axis in "ijk")]


def test_export_study__session_maps_have_the_numbers_of_the_cohort(volume):
    bench, out = volume
    cohort = opened(bench, "cohort/seeds/seedmap", "map-cohort")
    name = "sub-03/ses-1/func/sub-03_ses-1_task-rest_atlas-seeds_stat-seedmap_boldmap"
    image = nib.load(out / f"{name}.nii.gz")
    assert image.shape == (*SHAPE, 2)
    np.testing.assert_array_equal(image.affine, AFFINE)
    source = nib.load(bench.study.folder / "runs" / "sub-03_run-1.nii.gz")
    code = int(source.header["sform_code"]) or int(source.header["qform_code"]) or 1
    assert {int(image.header[f"{form}form_code"]) for form in "qs"} == {code}
    np.testing.assert_array_equal(values_at(image, cohort), cohort["seed_map"][2].to_numpy().T)
    sidecar = json.loads((out / f"{name}.json").read_text())
    assert sidecar["Nodes"] == ["left M1", "Left-m1"]
    assert len(sidecar["Sources"]) == 1
    assert sidecar["Values"].startswith("Fisher z")


def test_export_study__group_maps_have_the_numbers_of_the_tests(volume):
    bench, out = volume
    labels = {"groups": ("tstat", "effect", "zstat", "punc", "pfwe", "pfdr"), "in-clusters": ("cluster", "enhanced")}
    variables = {"tstat": "stat", "punc": "p_unc", "pfwe": "p_fwe", "pfdr": "p_fdr"}
    for contrast, suffixes in labels.items():
        for i, node in enumerate(("1leftM1", "2LeftM1"), start=1):
            place = ("1-left-M1", "2-Left-m1")[i - 1]
            result = opened(bench, f"contrasts/seeds/seedmap/{contrast}/{place}", "map-test")
            for suffix in suffixes:
                desc = {"groups": "groups", "in-clusters": "inClusters"}[contrast]
                stem = f"group/group_atlas-seeds_stat-seedmap_seed-{node}_desc-{desc}_{suffix}"
                image = nib.load(out / f"{stem}.nii.gz")
                stored = result[variables.get(suffix, suffix)].to_numpy().astype(np.float32)
                np.testing.assert_array_equal(values_at(image, result), stored)
                sidecar = json.loads((out / f"{stem}.json").read_text())
                assert sidecar["NumberOfPermutations"] == 20
                assert len(sidecar["Sources"]) == 7  # six sessions and the table of people


def test_export_study__p_over_all_nodes_goes_along(volume):
    bench, out = volume
    joint = opened(bench, "contrasts/seeds/seedmap/groups", "map-correction")
    stem = out / "group" / "group_atlas-seeds_stat-seedmap_seed-2LeftM1_desc-groups_pfwenodes"
    image = nib.load(f"{stem}.nii.gz")
    np.testing.assert_array_equal(values_at(image, joint), joint["p_fwe_nodes"][1].to_numpy().astype(np.float32))
    assert json.loads(stem.with_suffix(".json").read_text())["CorrectedOver"] == ["left M1", "Left-m1"]


def test_export_study__clusters_of_maps_have_their_peak_in_mm(volume):
    bench, out = volume
    result = opened(bench, "contrasts/seeds/seedmap/in-clusters/1-left-M1", "map-test")
    table = pd.read_table(out / "group/group_atlas-seeds_stat-seedmap_seed-1leftM1_desc-inClusters_clusters.tsv")
    peak = table.loc[table["p_fwe"].idxmin()]
    ijk = np.linalg.solve(AFFINE, [*map(float, peak["peak"].split()), 1.0])[:3].round().astype(int)
    at = np.flatnonzero((ijk == np.stack([result[axis].to_numpy() for axis in "ijk"]).T).all(axis=1))
    assert result["stat"].to_numpy()[at].item() == peak["peak_stat"]
    assert result["p_fwe"].to_numpy()[at].item() == peak["p_fwe"]


def test_export_study__p_outside_the_mask_is_not_significant(volume):
    _, out = volume
    for suffix in ("pfwe", "punc", "pfdr", "pfwenodes"):
        [path] = out.glob(f"group/*seed-2LeftM1_desc-groups_{suffix}.nii.gz")
        found = np.asarray(nib.load(path).dataobj)
        assert np.isnan(found[..., 4]).all()
        assert np.isfinite(found[..., :4]).mean() > 0.9


def test_export_study__maps_of_grayordinates_lie_on_the_axis_of_the_input(tmp_path):
    source = copy_hcp_study(tmp_path)
    study = write_study(
        tmp_path,
        inputs={"layout": "hcp", "participants": None},
        nodes={"sim": {"atlas": HCP_ATLAS, "seed_maps": True, "netmats": False}},
        contrasts={"groups": None, "mean-map": {"test": "one-sample"}},
    )
    bench, out = exported(study)
    axis = nib.load(source).header.get_axis(1)
    cohort = opened(bench, "cohort/sim/seedmap", "map-cohort")
    [path] = out.glob("sub-01/ses-pre/func/*_atlas-sim_stat-seedmap_boldmap.dscalar.nii")
    image = nib.load(path)
    assert image.header.get_axis(1) == axis
    assert list(image.header.get_axis(0).name) == [str(name) for name in cohort["node"].to_numpy()]
    found = np.asarray(image.dataobj)
    np.testing.assert_array_equal(found[:, np.isfinite(found).all(axis=0)], cohort["seed_map"][0].to_numpy())
    test = next(step for step in bench.plan.steps if step.stage == "map-test")
    result = cubes.open_group(bench.study.store, test.address)
    for suffix, variable in (("tstat", "stat"), ("pfwe", "p_fwe")):
        node = label_nodes([str(name) for name in cohort["node"].to_numpy()])[0]
        [path] = out.glob(f"group/*_seed-{node}_desc-meanMap_{suffix}.dscalar.nii")
        image = nib.load(path)
        assert image.header.get_axis(1) == axis
        found = np.asarray(image.dataobj)[0]
        np.testing.assert_array_equal(found[np.isfinite(found)], result[variable].to_numpy().astype(np.float32))


def test_list_map_images__has_no_corrected_p_where_features_stopped_by_themselves(volume):
    bench, _ = volume
    result = opened(bench, "contrasts/seeds/seedmap/groups/1-left-M1", "map-test")
    writer = MapWriter(bench, next(step for step in bench.plan.steps if step.stage == "ingest"))
    whole, stopped = (
        {file.suffix for file in list_map_images(ds, node="left M1", writer=writer)}
        for ds in (result, result.assign_attrs(n_exceed=10))
    )
    assert whole - stopped == {"pfwe.nii.gz"}


def test_label_nodes__gives_each_node_its_own():
    assert label_nodes(["PCC", "left M1", "Left-m1", "++"]) == ["PCC", "2leftM1", "3LeftM1", "4"]
