import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.cifti2 import cifti2_axes

from kconn.errors import InputError, KconnError, SchemaError
from kconn.grayordinates import find_rows, read_grayordinates
from kconn.io import cifti, cifti_write, nifti
from tests import cifti_files as made

XYZT_STEP = 0.72


@pytest.fixture
def series(tmp_path):
    axis = made.brain_models()
    values = np.random.default_rng(1).normal(100, 5, (20, len(axis))).astype(np.float32)
    return made.write(tmp_path / "a.dtseries.nii", values, made.series_axis(), axis), values, axis


def _read(path, **options):
    header = cifti.read_series_header(path)
    blocks = list(cifti.stream_rows(path, header.matrix, **{"rows_per_block": 7, **options}))
    return header, np.concatenate([cifti.scale_rows(block, header.matrix) for block in blocks])


def _refused(path, code, read=cifti.read_series_header, **options):
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def test_read_series_header__keeps_both_axes_as_nibabel_reads_them(series):
    path, _, axis = series
    header = cifti.read_series_header(path)
    assert cifti_write.brain_model_axis(header.places) == axis
    assert (header.n_time, header.t_r, header.start) == (20, XYZT_STEP, 0.0)
    assert header.n_row == len(axis)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u1", "i4"])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_stream_rows__equals_nibabel(tmp_path, dtype, endianness):
    axis = made.brain_models()
    values = np.random.default_rng(2).integers(0, 200, (20, len(axis)))
    path = made.write(tmp_path / "a.dtseries.nii", values, made.series_axis(), axis, dtype=dtype, slope=0.5)
    header, rows = _read(made.turn(path) if endianness == ">" else path)
    assert np.dtype(header.matrix.dtype).newbyteorder("=") == np.dtype(dtype)
    np.testing.assert_array_equal(rows.T, nib.load(path).get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(rows.T, 0.5 * values)


def test_stream_rows__reads_gzip_and_starts_anywhere(series):
    path, values, _ = series
    packed = path.with_name("a.dtseries.nii.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(_read(packed)[1], values.T)
    np.testing.assert_array_equal(_read(path, first_row=13)[1], values.T[13:])


def test_read_series_header__reads_a_ptseries(tmp_path):
    axis = cifti2_axes.ParcelsAxis.from_brain_models(
        [("both", made.brain_models()[5:40]), ("deep", made.brain_models()[-4:]), ("last", made.brain_models()[:5])]
    )
    values = np.random.default_rng(3).normal(size=(20, 3))
    path = made.write(tmp_path / "a.ptseries.nii", values, made.series_axis(), axis, dtype=np.float64)
    header, rows = _read(path)
    assert header.places.names == ("both", "deep", "last")
    assert cifti_write.parcels_axis(header.places) == axis
    np.testing.assert_array_equal(rows.T, values.astype(np.float32))


@pytest.mark.parametrize(
    "name",
    ["Conte69.MyelinAndCorrThickness.32k_fs_LR.dtseries.nii", "Conte69.MyelinAndCorrThickness.32k_fs_LR.ptseries.nii"],
)
def test_read_series_header__equals_nibabel_on_the_reference_files(shared_data, name):
    path = shared_data / "small" / "cifti" / name
    header, rows = _read(path, rows_per_block=1000)
    image = nib.load(path)
    write = cifti_write.parcels_axis if "pts" in name else cifti_write.brain_model_axis
    assert write(header.places) == image.header.get_axis(1)
    np.testing.assert_array_equal(rows.T, image.get_fdata(dtype=np.float32))


@pytest.mark.parametrize("n", [200, 400])
def test_read_dense_labels__reads_the_schaefer_atlases(shared_data, n):
    path = shared_data / "atlases" / f"Schaefer{n}x17_den-32k.dlabel.nii"
    found = cifti.read_dense_labels(path)
    image = nib.load(path)
    table = image.header.get_axis(0).label[0]
    assert cifti_write.brain_model_axis(found.places) == image.header.get_axis(1)
    np.testing.assert_array_equal(found.keys, image.get_fdata()[0])
    assert {key: (found.names[key], found.colours[key]) for key in found.names} == {
        key: entry for key, entry in table.items() if key
    }


def test_read_dense_labels__chooses_a_map_by_name(shared_data):
    path = shared_data / "small" / "cifti" / "Conte69.parcellations_VGD11b.32k_fs_LR.dlabel.nii"
    assert "MEDIAL WALL lh (fs_LR)" in _refused(path, "E-AMBIGUOUS", cifti.read_dense_labels).problem
    _refused(path, "E-ATLAS", cifti.read_dense_labels, map_name="no such map")
    found = cifti.read_dense_labels(path, map_name="MEDIAL WALL lh (fs_LR)")
    np.testing.assert_array_equal(found.keys, nib.load(path).get_fdata()[2])


@pytest.mark.parametrize("value", [3.0, 0.5, np.nan])
def test_read_dense_labels__refuses_values_that_its_table_does_not_name(tmp_path, value):
    axis = made.everywhere()
    labels = np.ones((1, len(axis)))
    labels[0, 7] = value
    path = made.write(tmp_path / "a.dlabel.nii", labels, made.label_axis({1: "a", 2: "b"}), axis)
    _refused(path, "E-ATLAS", cifti.read_dense_labels)


@pytest.mark.parametrize(
    ("unit", "step", "code"),
    [("HERTZ", 1.0, "E-TR-UNITS"), ("SECOND", 720.0, "E-TR-RANGE"), ("SECOND", 0, "E-TR-RANGE")],
)
def test_read_series_header__refuses_what_is_no_repetition_time(tmp_path, unit, step, code):
    axis = made.brain_models()
    path = made.write(
        tmp_path / "a.dtseries.nii", np.ones((20, len(axis))), made.series_axis(step=step, unit=unit), axis
    )
    _refused(path, code)
    assert cifti.read_series_header(path, t_r=2.0).t_r == 2.0


def test_read_series_header__checks_the_sidecar(series):
    _refused(series[0], "E-TR-MISMATCH", sidecar_t_r=2.0)
    assert cifti.read_series_header(series[0], sidecar_t_r=0.72).t_r == 0.72


def test_read_series_header__refuses_other_matrices(tmp_path, series):
    path, values, axis = series
    scalars = cifti2_axes.ScalarAxis(["a"])
    other = made.write(tmp_path / "b.dscalar.nii", values[:1], scalars, axis)
    assert "scalar" in _refused(other, "E-CIFTI").problem
    turned = made.write(tmp_path / "c.dtseries.nii", values.T, axis, made.series_axis(), intent=3002)
    assert "grayordinates (dimension 0) by series (dimension 1)" in _refused(turned, "E-CIFTI").problem
    _refused(other, "E-CIFTI", cifti.read_dense_labels)
    one = made.write(tmp_path / "d.dtseries.nii", values[:1], made.series_axis(1), axis)
    _refused(one, "E-CIFTI")
    assert "intent code 0" in _refused(made.patch(path, 504, struct.pack("<i", 0)), "E-CIFTI").problem


def test_read_series_header__refuses_a_plain_image_and_an_image_reader_a_cifti(tmp_path, series):
    path = tmp_path / "b.dtseries.nii"
    nib.Nifti1Image(np.ones((4, 4, 4, 10), np.float32), np.eye(4)).to_filename(tmp_path / "b.nii")
    (tmp_path / "b.nii").rename(path)
    assert "NIfTI-1" in _refused(path, "E-CIFTI").problem
    assert "CIFTI matrix of 20 x 75" in _refused(series[0], "E-NIFTI-DIMS", nifti.read_header).problem


def test_read_series_header__refuses_models_that_do_not_fit_the_matrix(tmp_path, series):
    raw = series[0].read_bytes()
    for old, new in (
        (b'IndexOffset="32"', b'IndexOffset="33"'),
        (b'IndexCount="32"', b'IndexCount="31"'),
        (b'SurfaceNumberOfVertices="40"', b'SurfaceNumberOfVertices="12"'),
        (b'VolumeDimensions="6,7,5"', b'VolumeDimensions="2,7,5"'),
        (b"1 2 2\n2 2 2", b"1 2 2\n1 2 2"),
        (b'Version="2.0"', b'Version="1.0"'),
        (b"</CIFTI>", b"<CIFTI/>"),
        (b'NumberOfSeriesPoints="20"', b'NumberOfSeriesPoints="21"'),
    ):
        assert old in raw, old
        damaged = tmp_path / "d.dtseries.nii"
        damaged.write_bytes(raw.replace(old, new))
        _refused(damaged, "E-CIFTI")


@pytest.mark.parametrize("n_kept", [0, 3, 540, 548, 700, 2000, -4, -1])
def test_read_series_header__refuses_a_truncated_file(series, n_kept):
    path, _, _ = series
    path.write_bytes(path.read_bytes()[:n_kept])
    with pytest.raises(InputError):
        cifti.read_series_header(path)


def test_read_series_header__refuses_a_file_that_goes_on(series):
    path, _, _ = series
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")
    _refused(path, "E-NIFTI-SIZE")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read_series_header__names_every_damage(tmp_path, data):
    axis, path = made.brain_models(), tmp_path / "a.dtseries.nii"
    if not path.exists():
        made.write(path, np.ones((4, len(axis)), np.float32), made.series_axis(4), axis)
    raw = path.read_bytes()
    n_header = len(raw) - 4 * 75 * 4
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, n_header - 1))
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    target = path.with_name("damaged.dtseries.nii")
    target.write_bytes(bytes(damaged[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]))
    try:
        header = cifti.read_series_header(target)
        for block in cifti.stream_rows(target, header.matrix, rows_per_block=50):
            cifti.scale_rows(block, header.matrix)
    except KconnError:
        pass


def test_write_scalars__nibabel_reopens_the_identical_axis(tmp_path, series):
    places = cifti.read_series_header(series[0]).places
    maps = np.random.default_rng(4).normal(size=(2, len(places)))
    cifti_write.write_scalars(tmp_path / "m.dscalar.nii", maps, ["a", "b"], places)
    image = nib.load(tmp_path / "m.dscalar.nii")
    _same_axis(image.header.get_axis(1), series[2])
    assert list(image.header.get_axis(0).name) == ["a", "b"]
    assert image.nifti_header.get_intent()[0] == "ConnDenseScalar"
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), maps.astype(np.float32))
    first = (tmp_path / "m.dscalar.nii").read_bytes()
    cifti_write.write_scalars(tmp_path / "m.dscalar.nii", maps, ["a", "b"], places)
    assert (tmp_path / "m.dscalar.nii").read_bytes() == first


def test_write_series__nibabel_reopens_both_axes(tmp_path, series):
    path, values, axis = series
    places = cifti.read_series_header(path).places
    blocks = (values.T[start : start + 30] for start in range(0, len(axis), 30))
    out = tmp_path / "o.dtseries.nii"
    cifti_write.write_series(out, blocks, n_time=20, t_r=0.72, start=1.44, places=places)
    image = nib.load(out)
    _same_axis(image.header.get_axis(1), axis)
    assert image.header.get_axis(0) == made.series_axis(start=1.44)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), values)
    np.testing.assert_array_equal(_read(out)[1], values.T)


def test_write_matrix__nibabel_reopens_the_identical_axis(tmp_path, shared_data):
    source = shared_data / "small" / "cifti" / "Conte69.MyelinAndCorrThickness.32k_fs_LR.ptseries.nii"
    parcels = cifti.read_series_header(source).places
    matrix = np.random.default_rng(5).normal(size=(54, 54))
    cifti_write.write_matrix(tmp_path / "m.pconn.nii", matrix, parcels)
    image, axis = nib.load(tmp_path / "m.pconn.nii"), nib.load(source).header.get_axis(1)
    assert image.header.get_axis(0) == axis
    assert image.header.get_axis(1) == axis
    assert image.nifti_header.get_intent()[0] == "ConnParcels"
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), matrix.astype(np.float32))


def test_write_scalars__writes_the_reference_axis_of_91282_grayordinates(tmp_path, shared_data):
    source = shared_data / "small" / "cifti" / "ones.dscalar.nii"
    _, (_, places) = cifti._read_header(source, where="", what="scalars")
    cifti_write.write_scalars(tmp_path / "m.dscalar.nii", np.ones((1, 91282)), ["ones"], places)
    _same_axis(nib.load(tmp_path / "m.dscalar.nii").header.get_axis(1), nib.load(source).header.get_axis(1))


@pytest.mark.parametrize("shape", [(2, 74), (1, 75), (75, 2)])
def test_write_scalars__refuses_other_shapes_and_leaves_no_file(tmp_path, series, shape):
    places = cifti.read_series_header(series[0]).places
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        cifti_write.write_scalars(tmp_path / "m.dscalar.nii", np.ones(shape), ["a", "b"], places)
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        cifti_write.write_series(tmp_path / "m.dtseries.nii", [np.ones((3, 5))], n_time=5, t_r=1.0, places=places)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dtseries.nii"]


def test_read_grayordinates__gives_back_what_the_coordinates_hold(series):
    places = cifti.read_series_header(series[0]).places
    ds = xr.Dataset(coords=places.coords(), attrs=places.attrs())
    _same_axis(cifti_write.brain_model_axis(read_grayordinates(ds)), series[2])
    assert read_grayordinates(ds).digest() == places.digest()


def _places(tmp_path, axis, name="x.dtseries.nii"):
    return cifti.read_series_header(
        made.write(tmp_path / name, np.ones((3, len(axis))), made.series_axis(3), axis)
    ).places


def test_find_rows__matches_vertices_and_voxels_by_name_and_number(tmp_path):
    run = _places(tmp_path, made.brain_models())
    atlas_axis = made.brain_models(
        vertices={made.RIGHT: np.arange(40), made.LEFT: np.arange(39, -1, -1)}, voxels=made.VOXELS[::-1]
    )
    atlas = _places(tmp_path, atlas_axis)
    rows = find_rows(atlas, run)
    place = {
        (str(name), int(vertex), *map(int, voxel)): i
        for i, (name, vertex, voxel) in enumerate(
            zip(made.brain_models().name, made.brain_models().vertex, made.brain_models().voxel, strict=True)
        )
    }
    wanted = [
        place.get((str(name), int(vertex), *map(int, voxel)), -1)
        for name, vertex, voxel in zip(atlas_axis.name, atlas_axis.vertex, atlas_axis.voxel, strict=True)
    ]
    np.testing.assert_array_equal(rows, wanted)
    assert (rows == -1).sum() == 8 + 3


@pytest.mark.parametrize(
    "changes", [{"n_vertices": 41}, {"shape": (6, 7, 6)}, {"affine": made.AFFINE + np.eye(4)[3] * 0.5}]
)
def test_find_rows__refuses_other_spaces(tmp_path, changes):
    if "affine" in changes:
        changes["affine"] = made.AFFINE.copy()
        changes["affine"][0, 3] += 0.5
    run, atlas = _places(tmp_path, made.brain_models()), _places(tmp_path, made.brain_models(**changes))
    with pytest.raises(InputError, match="E-BRAIN-MODELS"):
        find_rows(atlas, run)


def _same_axis(actual, expected):
    """Compare exactly: nibabel's own equality allows affines to differ a little."""
    assert actual == expected
    np.testing.assert_array_equal(actual.affine, expected.affine)
    assert actual.volume_shape == expected.volume_shape
    assert actual.nvertices == expected.nvertices
    for part in ("name", "vertex", "voxel"):
        np.testing.assert_array_equal(getattr(actual, part), getattr(expected, part))
