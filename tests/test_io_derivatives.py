"""Names, tables and sidecars of BIDS derivatives."""

import io
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from kconn.errors import KconnError
from kconn.io.derivatives import bids_label, bids_name, check_folder, json_bytes, matrix_bytes, table_bytes
from kconn.io.nifti_write import voxel_indices, write_image, write_series


def read(content, **options):
    return pd.read_csv(io.BytesIO(content), sep="\t", dtype=str, keep_default_na=False, **options)


def numbers(cells):
    return cells.replace("n/a", "nan").map(float)


@pytest.mark.parametrize(
    ("text", "label"),
    [("sim", "sim"), ("drug-change", "drugChange"), ("A-b-c1", "ABC1"), ("schaefer-100", "schaefer100")],
)
def test_bids_label__keeps_letters_and_digits(text, label):
    assert bids_label(text) == label


def test_bids_name__leaves_out_what_has_no_label():
    assert bids_name({"sub": "1", "ses": None, "task": "rest"}, "bold.tsv") == "sub-1_task-rest_bold.tsv"


def test_table_bytes__floats_read_back_bit_for_bit():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 2000, dtype=np.uint64).view(np.float64)
    values = np.concatenate([values[np.isfinite(values)], [0.1, -0.0, 5e-324, 1e308, np.inf, -np.inf, np.nan]])
    back = numbers(read(table_bytes({"x": values}))["x"]).to_numpy()
    assert back.tobytes() == np.where(np.isnan(values), np.nan, values).tobytes()


def test_table_bytes__cells_of_every_kind():
    columns = {"i": [1, 2], "b": np.array([True, False]), "s": np.array(["", 'a\t"b"\nc'], object), "f": [np.nan, 0.5]}
    content = table_bytes(columns)
    assert content.decode() == 'i\tb\ts\tf\n1\t1\tn/a\tn/a\n2\t0\t"a\t""b""\nc"\t0.5\n'
    assert read(content)["s"].tolist()[1] == 'a\t"b"\nc'


def test_matrix_bytes__names_rows_and_columns():
    matrix = np.array([[1, 1 / 3], [np.nan, 1]])
    back = read(matrix_bytes(["a b", "c"], matrix), index_col="Node")
    assert back.index.tolist() == back.columns.tolist() == ["a b", "c"]
    np.testing.assert_array_equal(numbers(back), matrix)


def test_json_bytes__is_strict_json():
    content = json_bytes({"n": np.int64(1), "x": [np.float64("nan"), np.array([0.1])], "t": (True, None), "ü": {}})
    assert json.loads(content, parse_constant=pytest.fail) == {"n": 1, "x": ["n/a", [0.1]], "t": [True, None], "ü": {}}


def test_check_folder__refuses_strangers_and_names_that_collide(tmp_path):
    check_folder(tmp_path / "new", ["a.tsv"])
    (tmp_path / "group").mkdir()
    (tmp_path / "group/a.tsv").touch()
    (tmp_path / ".DS_Store").touch()
    check_folder(tmp_path, ["group/a.tsv", "b.tsv"])
    with pytest.raises(KconnError, match="E-FILE-EXISTS"):
        check_folder(tmp_path, ["b.tsv"])
    with pytest.raises(KconnError, match="E-STUDY-VALUE"):
        check_folder(tmp_path / "new", ["desc-aB_x.tsv", "desc-ab_x.tsv"])


def test_write_series__blocks_give_the_bytes_of_the_whole(tmp_path):
    mask = np.random.default_rng(1).random((4, 5, 6)) > 0.5
    ijk, affine = voxel_indices(mask), np.diag([2.0, 2, 3, 1])
    values = np.random.default_rng(2).normal(size=(len(ijk), 7)).astype(np.float32)
    values[:, 3] = np.nan
    place = {"ijk": ijk, "grid_shape": mask.shape, "affine": affine, "t_r": 0.72}
    write_image(tmp_path / "whole.nii.gz", values, **place)
    for name, blocks in (("blocks", [values[:, :3], values[:, 3:4], values[:, 4:]]), ("one", iter([values]))):
        write_series(tmp_path / f"{name}.nii.gz", blocks, n_time=7, **place)
        assert (tmp_path / f"{name}.nii.gz").read_bytes() == (tmp_path / "whole.nii.gz").read_bytes()
    image = nib.load(tmp_path / "one.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj)[tuple(ijk.T)], values)


@pytest.mark.parametrize("n_time", [6, 8])
def test_write_series__refuses_another_number_of_frames(tmp_path, n_time):
    place = {"ijk": np.array([[0, 0, 0]]), "grid_shape": (1, 1, 1), "affine": np.eye(4), "t_r": 2.0}
    with pytest.raises(KconnError, match="E-ARGUMENT"):
        write_series(tmp_path / "x.nii", [np.zeros((1, 7))], n_time=n_time, **place)
    assert list(tmp_path.iterdir()) == []
