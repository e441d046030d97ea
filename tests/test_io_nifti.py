"""NIfTI in and out against nibabel's own arrays."""

import gzip
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kconn.errors import InputError, ResourceError, SchemaError
from kconn.io import nifti, nifti_header, streams
from kconn.io.nifti_write import voxel_indices, write_image

AFFINE = np.array([[-3.0, 0.2, 0, 30], [0.2, 3.0, 0, -20], [0, 0, 4, -10], [0, 0, 0, 1]])
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] @ np.diag([3.0, 3.0, 4.0])
SHAPE = (5, 4, 3, 7)


def write_bold(path, *, dtype="<i2", shape=SHAPE, cls=nib.Nifti1Image, unit="sec", t_r=2.0, slope=None, order="<"):
    rng = np.random.default_rng(7)
    data = rng.integers(0, 100, shape).astype(dtype)
    header = cls.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = cls(data, AFFINE, header)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    image.header.set_xyzt_units("mm", unit)
    if len(shape) > 3:
        image.header["pixdim"][4] = t_r
    nib.save(image, path)
    if slope is not None:
        patch(path, slope=slope, version=1 if cls is nib.Nifti1Image else 2, order=order)
    return path


def patch(path, *, slope, version, order):
    packed = path.name.endswith(".gz")
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    at, kind = (112, "f4") if version == 1 else (176, "f8")
    item = np.array(slope, order + kind).tobytes()
    raw[at : at + len(item)] = item
    path.write_bytes(gzip.compress(bytes(raw), mtime=0) if packed else bytes(raw))


def read_all(path, *, frames_per_block=3, **kwargs):
    header = nifti.read_header(path, **kwargs)
    blocks = list(nifti.stream_frames(path, header, frames_per_block=frames_per_block))
    return header, np.concatenate([nifti.scale_block(block, header) for block in blocks])


def to_frames(image):
    data = np.asarray(image.dataobj)
    return data.reshape(-1, data.shape[3], order="F").T


GOOD = [
    pytest.param(kwargs, suffix, id="-".join(f"{v}" for v in kwargs.values() if not isinstance(v, type)) + suffix)
    for kwargs, suffix in itertools.chain(
        (({"dtype": dtype, "order": order}, suffix))
        for dtype, order, suffix in itertools.product(
            ["u1", "i2", "i4", "f4", "f8", "u2", "i1"], ["<", ">"], [".nii", ".nii.gz"]
        )
    )
]


@pytest.mark.parametrize(("kwargs", "suffix"), GOOD)
def test_stream_frames__equals_nibabel(tmp_path, kwargs, suffix):
    path = write_bold(tmp_path / f"bold{suffix}", **kwargs)
    header, frames = read_all(path)
    image = nib.load(path)
    assert header.grid_shape == SHAPE[:3]
    assert header.n_time == SHAPE[3]
    assert header.dtype == np.dtype(kwargs["dtype"]).newbyteorder(kwargs["order"]).str
    np.testing.assert_array_equal(frames, to_frames(image).astype(np.float32))
    np.testing.assert_array_equal(np.array(header.affine), image.affine)


@pytest.mark.parametrize("slope", [(2.5, 10.0), (0.013, -7.0), (-1.0, 0.0)])
@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_scale_block__equals_nibabel(tmp_path, slope, cls, order):
    path = write_bold(tmp_path / "bold.nii.gz", cls=cls, order=order, slope=slope)
    header, frames = read_all(path)
    assert header.is_scaled
    np.testing.assert_allclose(frames, to_frames(nib.load(path)), rtol=3e-7)


@pytest.mark.parametrize("slope", [(0.0, 3.0), (np.nan, 3.0), (np.nan, np.nan)])
def test_read_header__reads_zero_or_nan_slope_as_no_scaling(tmp_path, slope):
    header, frames = read_all(write_bold(tmp_path / "bold.nii", slope=slope))
    assert (header.scl_slope, header.scl_inter) == (1.0, 0.0)
    assert "no scaling" in header.notes[0]
    np.testing.assert_array_equal(frames, to_frames(nib.load(tmp_path / "bold.nii")))


@pytest.mark.parametrize("frames_per_block", [1, 2, 7, 100])
def test_stream_frames__blocks_are_bounded_and_contiguous(tmp_path, frames_per_block):
    path = write_bold(tmp_path / "bold.nii.gz")
    header = nifti.read_header(path)
    blocks = list(nifti.stream_frames(path, header, frames_per_block=frames_per_block))
    assert all(block.flags.c_contiguous and block.dtype.isnative for block in blocks)
    assert [len(block) for block in blocks][:-1] == [frames_per_block] * (len(blocks) - 1)
    np.testing.assert_array_equal(np.concatenate(blocks), to_frames(nib.load(path)))


@pytest.mark.parametrize(("unit", "t_r"), [("sec", 0.72), ("msec", 720.0), ("usec", 720_000.0)])
def test_read_header__gives_seconds_for_every_unit(tmp_path, unit, t_r):
    assert nifti.read_header(write_bold(tmp_path / "bold.nii", unit=unit, t_r=t_r)).t_r == 0.72


@pytest.mark.parametrize(
    ("unit", "in_header", "stated", "sidecar", "expected"),
    [
        ("unknown", 1.0, 2.0, None, 2.0),
        ("unknown", 1.0, None, 2.0, 2.0),
        ("sec", 0.0, None, 2.0, 2.0),
        ("sec", 2000.0, 2.0, None, 2.0),
        ("sec", 2.0, 2.5, 2.0, 2.5),
        ("sec", 2.0004, None, 2.0, 2.0),
        ("sec", 2.5, None, 2.0, "E-TR-MISMATCH"),
        ("sec", 2000.0, None, 2.0, "E-TR-MISMATCH"),
        ("sec", np.nan, None, 2.0, "E-TR-MISMATCH"),
        ("sec", 2.0, 2000.0, None, "E-TR-RANGE"),
        ("sec", 0.0, None, 20.0, "E-TR-RANGE"),
    ],
)
def test_read_header__t_r_stated_then_header_and_sidecar(tmp_path, unit, in_header, stated, sidecar, expected):
    path = write_bold(tmp_path / "bold.nii", unit=unit, t_r=in_header)
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            nifti.read_header(path, t_r=stated, sidecar_t_r=sidecar)
        assert caught.value.code == expected
    else:
        assert nifti.read_header(path, t_r=stated, sidecar_t_r=sidecar).t_r == expected


def test_read_header__takes_five_dimensions_if_the_last_is_one(tmp_path):
    path = write_bold(tmp_path / "bold.nii.gz", shape=(*SHAPE, 1))
    header, frames = read_all(path)
    assert header.n_time == SHAPE[3]
    np.testing.assert_array_equal(frames, to_frames(nib.load(path).slicer[..., 0]))


def test_read_header__qform_alone_equals_nibabel(tmp_path):
    rng = np.random.default_rng(3)
    for _ in range(50):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = rotation @ np.diag([2.0, 2.5, 3.0])
        affine[:3, 3] = rng.normal(scale=50, size=3)
        image = nib.Nifti1Image(np.ones(SHAPE, np.int16), affine)
        image.set_sform(None, 0)
        image.set_qform(affine, 1)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / "bold.nii")
        header = nifti.read_header(tmp_path / "bold.nii", t_r=2.0)
        np.testing.assert_allclose(np.array(header.affine), nib.load(tmp_path / "bold.nii").affine, atol=1e-5)


def test_read_header__lets_small_differences_of_the_forms_pass(tmp_path):
    image = nib.load(write_bold(tmp_path / "bold.nii"))
    nearly = AFFINE.copy()
    nearly[:3, 3] += 0.01
    image.header.set_sform(nearly, 1)
    nib.save(image, tmp_path / "nearly.nii")
    nifti.read_header(tmp_path / "nearly.nii")


def test_stream_frames__detects_every_flipped_bit(tmp_path):
    path = write_bold(tmp_path / "bold.nii.gz", shape=(24, 24, 16, 20))
    header = nifti.read_header(path)
    good = path.read_bytes()
    rng = np.random.default_rng(60)
    n_detected = 0
    for position, bit in zip(rng.integers(10, len(good), 60), rng.integers(0, 8, 60), strict=True):
        bad = bytearray(good)
        bad[position] ^= 1 << bit
        path.write_bytes(bad)
        try:
            list(nifti.stream_frames(path, header, frames_per_block=4))
        except InputError as error:
            n_detected += error.code in {"E-GZIP", "E-NIFTI-SIZE"}
    assert n_detected == 60


def test_stream_frames__checks_the_end_before_the_last_block(tmp_path):
    path = write_bold(tmp_path / "bold.nii.gz", shape=(32, 32, 16, 20))
    header = nifti.read_header(path)
    bad = bytearray(path.read_bytes())
    bad[-6] ^= 1
    path.write_bytes(bad)
    blocks = nifti.stream_frames(path, header, frames_per_block=10)
    assert len(next(blocks)) == 10
    with pytest.raises(InputError, match="E-GZIP"):
        next(blocks)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_read_header__lets_padding_pass_but_no_whole_frame(tmp_path, suffix):
    path = write_bold(tmp_path / f"bold{suffix}")
    packed = suffix == ".nii.gz"
    raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    frame = 5 * 4 * 3 * 2
    for n_surplus in (1, frame - 1):
        padded = raw + b"x" * n_surplus
        path.write_bytes(gzip.compress(padded) if packed else padded)
        header, frames = read_all(path)
        assert str(n_surplus) in header.notes[-1]
        np.testing.assert_array_equal(frames, to_frames(nib.load(path)))
    path.write_bytes(gzip.compress(raw + b"x" * frame) if packed else raw + b"x" * frame)
    with pytest.raises(InputError, match="E-NIFTI-SIZE"):
        nifti.read_header(path)
    with pytest.raises(InputError, match="E-NIFTI-SIZE"):
        list(nifti.stream_frames(path, header, frames_per_block=4))


def test_stream_frames__reads_several_gzip_members(tmp_path):
    path = write_bold(tmp_path / "bold.nii.gz")
    expected = to_frames(nib.load(path)).copy()
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]) + gzip.compress(b""))
    np.testing.assert_array_equal(read_all(path)[1], expected)


def test_check_content_size__costs_no_pass_when_the_stored_length_agrees(tmp_path, monkeypatch):
    path = write_bold(tmp_path / "bold.nii.gz")
    monkeypatch.setattr(streams.ByteStream, "skip", lambda *_: pytest.fail("decompressed to count"))
    nifti.read_header(path)


def test_read_image__equals_nibabel(tmp_path):
    path = write_bold(tmp_path / "mask.nii.gz", shape=SHAPE[:3], slope=(0.5, 1.0))
    data, affine = nifti.read_image(path)
    np.testing.assert_array_equal(data, np.asarray(nib.load(path).dataobj))
    np.testing.assert_array_equal(affine, nib.load(path).affine)
    path = write_bold(tmp_path / "one.nii.gz", shape=(*SHAPE[:3], 1))
    np.testing.assert_array_equal(nifti.read_image(path)[0], np.asarray(nib.load(path).dataobj)[..., 0])


def test_read_mask__reads_what_write_image_wrote(tmp_path):
    mask = np.random.default_rng(1).random(SHAPE[:3]) < 0.5
    ijk = voxel_indices(mask)
    for name, dtype in itertools.product(["mask.nii", "mask.nii.gz"], [np.uint8, np.float32, np.int16]):
        write_image(tmp_path / name, np.full(len(ijk), 5), ijk=ijk, grid_shape=SHAPE[:3], affine=AFFINE, dtype=dtype)
        actual = nifti.read_mask(tmp_path / name, grid_shape=SHAPE[:3], affine=AFFINE)
        np.testing.assert_array_equal(actual, mask)


def test_voxel_indices__follow_the_order_of_the_file():
    mask = np.random.default_rng(1).random(SHAPE[:3]) < 0.5
    ijk = voxel_indices(mask)
    flat = np.ravel_multi_index(tuple(ijk.T), SHAPE[:3], order="F")
    np.testing.assert_array_equal(flat, np.flatnonzero(mask.reshape(-1, order="F")))
    assert ijk.dtype == np.int32


def test_read_labels__reads_whole_numbers(tmp_path):
    labels = np.random.default_rng(1).integers(0, 5, SHAPE[:3])
    nib.save(nib.Nifti1Image(labels.astype(np.float64), AFFINE), tmp_path / "atlas.nii.gz")
    data, affine = nifti.read_labels(tmp_path / "atlas.nii.gz")
    np.testing.assert_array_equal(data, labels)
    assert data.dtype == np.int32
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


def test_write_image__series_comes_back_through_nibabel_and_ourselves(tmp_path):
    mask = np.random.default_rng(1).random(SHAPE[:3]) < 0.5
    ijk = voxel_indices(mask)
    values = np.random.default_rng(2).normal(size=(len(ijk), 6)).astype(np.float32)
    path = tmp_path / "out" / "bold.nii.gz"
    write_image(path, values, ijk=ijk, grid_shape=SHAPE[:3], affine=AFFINE, t_r=0.72)
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[tuple(ijk.T)], values)
    assert not np.asarray(image.dataobj)[~mask].any()
    assert image.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    header, frames = read_all(path)
    assert header.t_r == 0.72
    np.testing.assert_array_equal(frames, to_frames(image))


def test_write_image__bytes_depend_on_content_alone(tmp_path):
    ijk = voxel_indices(np.ones(SHAPE[:3], bool))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_image(tmp_path / name, np.arange(len(ijk)), ijk=ijk, grid_shape=SHAPE[:3], affine=AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_write_image__is_nifti_2_for_a_large_grid(tmp_path):
    ijk = np.array([[0, 0, 0], [39_999, 0, 0]])
    path = tmp_path / "large.nii.gz"
    write_image(path, [1, 2], ijk=ijk, grid_shape=(40_000, 1, 1), affine=np.eye(4))
    image = nib.load(path)
    assert isinstance(image, nib.Nifti2Image)
    assert np.asarray(image.dataobj)[39_999, 0, 0] == 2
    np.testing.assert_array_equal(nifti.read_image(path)[0], np.asarray(image.dataobj))


def test_write_image__leaves_out_the_qform_of_a_sheared_affine(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    write_image(tmp_path / "map.nii", [1.0], ijk=[[0, 0, 0]], grid_shape=SHAPE[:3], affine=sheared)
    _, affine = nifti.read_image(tmp_path / "map.nii")
    np.testing.assert_array_equal(affine, sheared)


@pytest.mark.parametrize(
    ("values", "ijk", "kwargs"),
    [
        ([1.0], [[0, 0, 9]], {}),
        ([1.0, 2.0], [[0, 0, 0]], {}),
        ([1.0, 2.0], [[0, 0, 0], [0, 0, 0]], {}),
        ([1.0], [[0, 0, 0]], {"t_r": 2.0}),
        ([[1.0, 2.0]], [[0, 0, 0]], {}),
        ([0.5], [[0, 0, 0]], {"dtype": np.int16}),
        ([np.nan], [[0, 0, 0]], {"dtype": np.int16}),
        ([70_000], [[0, 0, 0]], {"dtype": np.int16}),
    ],
)
def test_write_image__refuses_what_does_not_fit(tmp_path, values, ijk, kwargs):
    with pytest.raises(SchemaError, match="E-ARGUMENT"):
        write_image(tmp_path / "map.nii", values, ijk=ijk, grid_shape=SHAPE[:3], affine=AFFINE, **kwargs)
    assert not list(tmp_path.iterdir())


def test_write_image__reports_a_full_disk_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ResourceError, match="E-DISK"):
        write_image(tmp_path / "map.nii", [1.0], ijk=[[0, 0, 0]], grid_shape=SHAPE[:3], affine=AFFINE)
    assert not list(tmp_path.iterdir())


def test_read_sidecar_t_r__takes_one_key(tmp_path):
    path = tmp_path / "bold.json"
    path.write_text(json.dumps({"RepetitionTime": 0.72, "PatientName": "nobody"}))
    assert nifti.read_sidecar_t_r(path) == 0.72
    path.write_text("{}")
    assert nifti.read_sidecar_t_r(path) is None


def test_grid_distance__is_in_voxel_edges():
    moved = AFFINE.copy()
    moved[0, 3] += 1.5
    np.testing.assert_allclose(nifti_header.grid_distance(AFFINE, moved, SHAPE), 0.5)


def test_read_header__keeps_no_text_of_the_file(tmp_path):
    path = write_bold(tmp_path / "bold.nii")
    image = nib.load(path)
    for name, n in (("descrip", 20), ("aux_file", 20), ("intent_name", 15), ("db_name", 15)):
        image.header[name] = b"MARKERMARKERMARKER"[:n]
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"MARKER patient"))
    nib.save(image, tmp_path / "MARKER.nii")
    header, frames = read_all(tmp_path / "MARKER.nii")
    assert "MARKER" not in repr(header)
    np.testing.assert_array_equal(frames, to_frames(nib.load(path)))


def test_read_header__reads_every_real_image(shared_data):
    paths = [
        *shared_data.glob("small/nibabel/functional.nii"),
        *shared_data.glob("small/nitime/*.nii.gz"),
        *shared_data.glob("pumi_rest_bids/sub-001/**/*bold.nii.gz"),
        *shared_data.glob("haxby_slice/**/task001_run001/*.nii.gz"),
    ]
    assert len(paths) == 5
    for path in map(Path, paths):
        header, frames = read_all(path, frames_per_block=50)
        image = nib.load(path)
        np.testing.assert_allclose(frames, to_frames(image), rtol=3e-7)
        np.testing.assert_array_equal(np.array(header.affine), image.affine)
    for path in shared_data.glob("small/nibabel/example*.nii.gz"):
        with pytest.raises(InputError, match="E-TR-RANGE"):
            nifti.read_header(path)
        header, frames = read_all(path, t_r=2.0)
        np.testing.assert_allclose(frames, to_frames(nib.load(path)), rtol=3e-7)


def test_read_labels__reads_every_real_atlas(shared_data):
    for path in (shared_data / "atlases").glob("Schaefer2018_*_2mm.nii.gz"):
        labels, affine = nifti.read_labels(path)
        image = nib.load(path)
        np.testing.assert_array_equal(labels, np.asarray(image.dataobj))
        np.testing.assert_array_equal(affine, image.affine)
