"""CIFTI exports: opened with nibabel, on the axes of the input and with the numbers of the store."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.cifti2 import cifti2_axes

from kconn.connect.nodes import drop_nodes, join_nodes, nodes_from_dense_labels, nodes_from_spheres
from kconn.execution import run_plan
from kconn.export.cifti import parcels_of
from kconn.export.study import export_study
from kconn.io import cifti, cifti_write, cubes
from kconn.io.store import Address
from kconn.study.workbench import prepare, writing
from tests import cifti_files as made
from tests.small_study import HCP_ATLAS, copy_hcp_study

STUDY = """
[study]
name = "small"
[inputs]
layout = "{layout}"
root = "derivatives"
{inputs}
[denoise]
confounds = "{confounds}"
high_pass = 0.01
low_pass = 0.2
fd_threshold = {fd}
[quality]
min_frames = 20
min_dof = 5
[nodes.sim-8]
{nodes}
[connectivity]
kinds = ["corr"]
[contrasts.mean-fc]
test = "one-sample"
"""
RUN = "sub-01/ses-pre/func/sub-01_ses-pre_task-rest_acq-REST1AP_space-fsLR"


def exported(folder, **parts):
    (folder / "study.toml").write_text(STUDY.format(**parts))
    bench = prepare(folder / "study.toml")
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    export_study(bench, folder / "out", images=True)
    return bench


def opened(bench, path, step):
    return cubes.open_group(bench.study.store, Address(path=path, step=step))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    source = copy_hcp_study(folder)
    bench = exported(folder, layout="hcp", inputs="", confounds="6P", fd=0.5, nodes=f'atlas = "{HCP_ATLAS}"')
    return folder, bench, nib.load(source)


def test_export_study__writes_maps_and_series_on_the_axis_of_the_input(dense):
    folder, bench, source = dense
    axis = source.header.get_axis(1)
    stored = opened(bench, "sub-01/ses-pre/run-REST1AP", "denoise")
    tsnr = nib.load(folder / "out" / f"{RUN}_desc-tsnr_boldmap.dscalar.nii")
    assert tsnr.header.get_axis(1) == axis
    np.testing.assert_array_equal(tsnr.header.get_axis(1).affine, axis.affine)
    assert tsnr.header.get_axis(0).name.tolist() == ["tSNR"]
    np.testing.assert_array_equal(tsnr.get_fdata(dtype=np.float32)[0], stored["tsnr"])
    series = nib.load(folder / "out" / f"{RUN}_desc-denoised_bold.dtseries.nii")
    assert series.header.get_axis(1) == axis
    assert series.header.get_axis(0) == source.header.get_axis(0)
    np.testing.assert_array_equal(series.get_fdata(dtype=np.float32).T, stored["denoised"])


def test_export_study__writes_node_results_on_the_parcels_of_the_dlabel(dense):
    folder, bench, _ = dense
    atlas = nib.load(folder / HCP_ATLAS)
    brain, table = atlas.header.get_axis(1), atlas.header.get_axis(0).label[0]
    expected = cifti2_axes.ParcelsAxis.from_brain_models(
        [(table[key][0], brain[atlas.get_fdata()[0] == key]) for key in range(1, 9)]
    )
    series = nib.load(folder / "out" / f"{RUN}_atlas-sim8_stat-mean_timeseries.ptseries.nii")
    assert series.header.get_axis(1) == expected
    stored = opened(bench, "sub-01/ses-pre/run-REST1AP/sim-8", "nodes")
    np.testing.assert_array_equal(series.get_fdata(dtype=np.float32).T, stored["timeseries"].astype(np.float32))
    coverage = nib.load(folder / "out" / f"{RUN}_atlas-sim8_stat-coverage_boldmap.pscalar.nii")
    assert coverage.header.get_axis(1) == expected
    np.testing.assert_array_equal(coverage.get_fdata()[0], 1)


@pytest.mark.parametrize(
    ("pconn", "tsv"),
    [
        (f"{RUN}_atlas-sim8_stat-pearsoncorrelation_boldmap", f"{RUN}_atlas-sim8_stat-pearsoncorrelation_relmat"),
        *[(f"group/group_atlas-sim8_stat-pearsoncorrelation_desc-meanFc_{part}",) * 2 for part in ("tstat", "pfwe")],
    ],
)
def test_export_study__writes_matrices_as_pconn(dense, pconn, tsv):
    folder, _, _ = dense
    image = nib.load(folder / "out" / f"{pconn}.pconn.nii")
    table = pd.read_csv(folder / "out" / f"{tsv}.tsv", sep="\t", index_col=0)
    for dim in (0, 1):
        assert image.header.get_axis(dim).name.tolist() == table.columns.tolist()
    assert image.header.get_axis(0) == image.header.get_axis(1)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), table.to_numpy(dtype=np.float32))
    sidecar = json.loads((folder / "out" / f"{pconn}.pconn.json").read_text())
    assert sidecar["Description"]
    assert sidecar["Sources"]


def test_export_study__lists_the_colours_of_the_dlabel(dense):
    folder, _, _ = dense
    nodes = pd.read_csv(folder / "out" / "group" / "group_atlas-sim8_nodes.tsv", sep="\t")
    table = nib.load(folder / HCP_ATLAS).header.get_axis(0).label[0]
    expected = [tuple(round(255 * part) for part in table[key][1][:3]) for key in range(1, 9)]
    assert [tuple(bytes.fromhex(colour[1:])) for colour in nodes["colour"]] == expected


def test_export_study__writes_the_same_bytes_again(dense):
    folder, bench, _ = dense
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*.nii")}
    export_study(bench, folder / "out", images=True)
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*.nii")} == before
    assert len(before) == 4 * 5 + 3


def test_export_study__keeps_the_parcels_of_a_ptseries(tmp_path):
    brain = made.brain_models()
    axis = cifti2_axes.ParcelsAxis.from_brain_models(
        [("a", brain[:20]), ("b", brain[20:72]), ("c", brain[72:]), ("d", brain[5:9])]
    )
    for subject in ("01", "02", "03"):
        values = np.random.default_rng(int(subject)).normal(100, 5, (100, 4))
        path = tmp_path / "derivatives" / f"{subject}.ptseries.nii"
        made.write(path, values, made.series_axis(100, start=1.44), axis)
        path.with_name(f"{subject}.json").write_text('{"RepetitionTime": 0.72}')
    exported(
        tmp_path,
        layout="cifti",
        inputs='pattern = "{subject}.ptseries.nii"\ntask = "rest"',
        confounds="none",
        fd='"none"',
        nodes='columns = "all"\nexclude = ["b"]',
    )
    run = "out/sub-01/ses-1/func/sub-01_ses-1_task-rest_run-1"
    denoised = nib.load(tmp_path / f"{run}_desc-denoised_bold.ptseries.nii")
    assert denoised.header.get_axis(1) == axis
    assert denoised.header.get_axis(0) == made.series_axis(100, start=1.44)
    assert nib.load(tmp_path / f"{run}_desc-tsnr_boldmap.pscalar.nii").header.get_axis(1) == axis
    matrix = nib.load(tmp_path / f"{run}_atlas-sim8_stat-pearsoncorrelation_boldmap.pconn.nii")
    assert matrix.header.get_axis(0) == axis[np.array([0, 2, 3])]
    sidecar = json.loads((tmp_path / f"{run}_desc-denoised_bold.ptseries.json").read_text())
    assert sidecar["Sources"] == ["01.json", "01.ptseries.nii"]


def test_parcels_of__joins_the_parts_of_a_union(tmp_path):
    axis = made.brain_models()
    path = made.write(tmp_path / "x.dtseries.nii", np.ones((3, len(axis))), made.series_axis(3), axis)
    places = cifti.read_series_header(path).places
    cortex = nodes_from_dense_labels(np.where(axis.surface_mask, axis.vertex % 3, 0), places, names={1: "a", 2: "b"})
    deep_axis = made.brain_models(vertices={made.LEFT: [0]})
    deep_path = made.write(tmp_path / "y.dtseries.nii", np.ones((3, 7)), made.series_axis(3), deep_axis)
    deep = nodes_from_dense_labels(
        np.where(deep_axis.volume_mask, 1, 0), cifti.read_series_header(deep_path).places, names={1: "deep"}
    )
    expected = cifti2_axes.ParcelsAxis.from_brain_models(
        [("b", axis[axis.surface_mask & (axis.vertex % 3 == 2)]), ("deep", axis[axis.volume_mask])]
    )
    found = cifti_write.parcels_axis(parcels_of(join_nodes(drop_nodes(cortex, ["a"]), deep)))
    assert found == expected
    with pytest.raises(TypeError):
        parcels_of(nodes_from_spheres([("s", 0, 0, 0)], radius_mm=1))


@pytest.mark.parametrize("n_node", [200, pytest.param(400, marks=pytest.mark.slow)])
def test_parcels_of__a_published_dlabel_nibabel_reopens_its_parcels_and_its_vertices(shared_data, tmp_path, n_node):
    source = shared_data / "atlases" / f"Schaefer{n_node}x17_den-32k.dlabel.nii"
    labels, models = nib.load(source).header.get_axis(0), nib.load(source).header.get_axis(1)
    keys = nib.load(source).get_fdata()[0]
    found = cifti.read_dense_labels(source)
    parcels = parcels_of(nodes_from_dense_labels(found.keys, found.places, names=found.names))
    values = np.arange(n_node, dtype=np.float32)

    cifti_write.write_matrix(tmp_path / "m.pconn.nii", values[:, None] + values, parcels)
    cifti_write.write_scalars(tmp_path / "m.pscalar.nii", values[None], ["value"], parcels)
    cifti_write.write_scalars(tmp_path / "m.dscalar.nii", keys[None], ["key"], found.places)

    matrix, scalars, dense = (nib.load(tmp_path / f"m.{kind}.nii") for kind in ("pconn", "pscalar", "dscalar"))
    assert dense.header.get_axis(1) == models
    np.testing.assert_array_equal(dense.get_fdata()[0], keys)
    axis = matrix.header.get_axis(0)
    assert axis == matrix.header.get_axis(1) == scalars.header.get_axis(1)
    np.testing.assert_array_equal(matrix.get_fdata(), values[:, None] + values)
    names = {key: name for key, (name, _) in labels.label[0].items() if key}
    assert axis.name.tolist() == [names[key] for key in sorted(names)]
    parts = [(structure, part.vertex, keys[chosen]) for structure, chosen, part in models.iter_structures()]
    for key, vertices in zip(sorted(names), axis.vertices, strict=True):
        for structure, vertex, label in parts:
            np.testing.assert_array_equal(vertices.get(structure, []), vertex[label == key])
