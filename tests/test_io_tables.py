"""Tables of numbers and people against NumPy and pandas, and on real files."""

import gzip

import numpy as np
import pandas as pd
import pytest

from kconn.errors import KconnError
from kconn.io import tables

VALUES = np.random.default_rng(5).normal(scale=300, size=(6, 4))
NAMES = ("a", "b", "c", "d")


def write(path, values, *, names=None, mark="\t"):
    lines = [] if names is None else [mark.join(names)]
    lines += [mark.join(repr(float(x)) for x in row) for row in values]
    path.write_text("\n".join(lines) + "\n")
    return path


def code_of(function, *args, **kwargs):
    with pytest.raises(KconnError) as caught:
        function(*args, **kwargs)
    assert caught.value.rule
    assert caught.value.fix
    return caught.value.code


@pytest.mark.parametrize("mark", ["\t", ",", ";", " ", "  "])
@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".txt"])
def test_read_timeseries__is_exact_for_every_delimiter(tmp_path, mark, names, suffix):
    path = write(tmp_path / f"run{suffix}", VALUES, names=names, mark=mark)
    table = tables.read_timeseries(path, orientation="time-by-node")
    np.testing.assert_array_equal(table.values, VALUES.T)
    assert table.names == (names or ("1", "2", "3", "4"))
    assert table.notes == ()


def test_read_timeseries__node_by_time_is_the_transpose(tmp_path):
    path = write(tmp_path / "run.txt", VALUES.T, mark="  ")
    table = tables.read_timeseries(path, orientation="node-by-time", n_node=4, n_time=6)
    np.testing.assert_array_equal(table.values, VALUES.T)


def test_read_timeseries__node_by_time_may_name_rows_and_frames(tmp_path):
    frame = pd.DataFrame(VALUES.T, index=list(NAMES), columns=[f"frame{i}" for i in range(6)])
    frame.to_csv(tmp_path / "run.csv")
    table = tables.read_timeseries(tmp_path / "run.csv", orientation="node-by-time")
    np.testing.assert_array_equal(table.values, VALUES.T)
    assert table.names == NAMES
    assert "first row" in table.notes[0]
    frame.to_csv(tmp_path / "run.csv", header=False)
    table = tables.read_timeseries(tmp_path / "run.csv", orientation="node-by-time")
    np.testing.assert_array_equal(table.values, VALUES.T)
    assert table.names == NAMES
    assert table.notes == ()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_read_timeseries__reads_npy(tmp_path, dtype, order):
    values = np.asarray(VALUES, dtype, order=order)
    np.save(tmp_path / "run.npy", values)
    table = tables.read_timeseries(tmp_path / "run.npy", orientation="time-by-node")
    np.testing.assert_array_equal(table.values, values.T)
    assert np.result_type(table.values) == np.float64


def test_read_timeseries__reads_gzip_bom_crlf_and_quotes(tmp_path):
    text = '\ufeff"a","b, left"\r\n1.5,2\r\n"3",4e0\r\n\r\n'
    (tmp_path / "run.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = tables.read_timeseries(tmp_path / "run.csv.gz", orientation="time-by-node")
    assert table.names == ("a", "b, left")
    np.testing.assert_array_equal(table.values, [[1.5, 3], [2, 4]])


def test_read_timeseries__makes_repeated_names_unique_and_says_so(tmp_path):
    path = write(tmp_path / "run.tsv", np.arange(12.0).reshape(2, 6), names=["a", "a", "b", "a_2", "a", "b"])
    table = tables.read_timeseries(path, orientation="time-by-node")
    assert len(set(table.names)) == 6
    assert table.names[0] == "a"
    assert table.names[2:4] == ("b", "a_2")
    assert table.names[5] == "b_2"
    assert len(table.notes) == 3


def test_read_timeseries__asks_where_a_header_is_ambiguous(tmp_path):
    numbered = write(tmp_path / "numbered.tsv", VALUES, names=["1", "2", "3", "4"])
    assert code_of(tables.read_timeseries, numbered, orientation="time-by-node") == "E-TABLE"
    table = tables.read_timeseries(numbered, orientation="time-by-node", has_header=True)
    np.testing.assert_array_equal(table.values, VALUES.T)
    assert table.names == ("1", "2", "3", "4")
    table = tables.read_timeseries(numbered, orientation="time-by-node", has_header=False)
    assert np.shape(table.values) == (4, 7)
    mixed = write(tmp_path / "mixed.tsv", VALUES, names=["a", "2", "c", "4"])
    assert code_of(tables.read_timeseries, mixed, orientation="time-by-node") == "E-TABLE"


def test_read_timeseries__refuses_an_orientation_that_contradicts(tmp_path):
    path = write(tmp_path / "run.tsv", VALUES, names=NAMES)
    read = tables.read_timeseries
    assert code_of(read, path, orientation="node-by-time") == "E-ORIENTATION"
    assert code_of(read, path, orientation="auto") == "E-ORIENTATION"
    assert code_of(read, path, orientation="time-by-node", n_time=4) == "E-ORIENTATION"
    assert code_of(read, path, orientation="time-by-node", n_node=6) == "E-ORIENTATION"
    assert code_of(read, path, orientation="time-by-node", n_node=7) == "E-TABLE-SHAPE"


def test_read_timeseries__names_row_and_column_of_nan(tmp_path):
    values = VALUES.copy()
    values[2, 3] = np.nan
    path = write(tmp_path / "run.tsv", values, names=NAMES)
    with pytest.raises(KconnError, match=r"E-TABLE-NAN .*row 4, column 4 \(d\)"):
        tables.read_timeseries(path, orientation="time-by-node")


def test_read_confounds__equals_pandas(tmp_path):
    frame = pd.DataFrame(VALUES, columns=list(NAMES))
    frame.loc[0, ["b", "d"]] = np.nan
    frame.loc[3, "d"] = np.nan
    frame.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False, na_rep="n/a")
    table = tables.read_confounds(tmp_path / "confounds.tsv", n_time=6)
    np.testing.assert_array_equal(table.values, frame.to_numpy())
    assert table.names == NAMES
    assert table.notes == ("1 confounds are n/a in the first frame alone", "d: n/a in 1 of 6 frames")


@pytest.mark.parametrize("header", ["", "FramewiseDisplacement\n"])
def test_read_vector__takes_one_number_per_frame_or_difference(tmp_path, header):
    (tmp_path / "fd.txt").write_text(header + "0.1\n0.2\n0.3\n")
    np.testing.assert_array_equal(tables.read_vector(tmp_path / "fd.txt"), [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(tables.read_vector(tmp_path / "fd.txt", n_time=3), [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(tables.read_vector(tmp_path / "fd.txt", n_time=4), [np.nan, 0.1, 0.2, 0.3])
    (tmp_path / "fd.txt").write_text(header + "n/a\n0.2\n0.3\n")
    np.testing.assert_array_equal(tables.read_vector(tmp_path / "fd.txt", n_time=3), [np.nan, 0.2, 0.3])


def test_read_participants__indexes_by_canonical_label(tmp_path):
    (tmp_path / "p.tsv").write_text(
        "participant_id\tage\tsex\tsite\tscore\nsub-01\t30\tF\t007\t1.5\nsub-02\t31\tn/a\t010\tn/a\n"
    )
    table = tables.read_participants(tmp_path / "p.tsv")
    assert list(table.index) == ["01", "02"]
    assert table.index.name == "subject"
    assert table["age"].dtype.kind == "i"
    assert list(table["site"]) == ["007", "010"]
    assert pd.isna(table.loc["02", "sex"])
    np.testing.assert_array_equal(table["score"], [1.5, np.nan])


def test_read_participants__maps_numbers_with_id_format(tmp_path):
    (tmp_path / "p.csv").write_text("ID,Age\n4,26\n12,24\n")
    table = tables.read_participants(tmp_path / "p.csv", id_column="ID", id_format="{:03d}")
    assert list(table.index) == ["004", "012"]
    table = tables.read_participants(tmp_path / "p.csv", id_column="ID", id_format="S{}")
    assert list(table.index) == ["S4", "S12"]


@pytest.mark.parametrize("id_format", ["{}{}", "{:x}", "no field", "../{:03d}", "{0.__class__}"])
def test_read_participants__refuses_any_other_id_format(tmp_path, id_format):
    (tmp_path / "p.csv").write_text("ID,Age\n4,26\n")
    assert code_of(tables.read_participants, tmp_path / "p.csv", id_column="ID", id_format=id_format) == "E-STUDY-VALUE"


def test_read_sessions__indexes_by_subject_and_session(tmp_path):
    (tmp_path / "s.tsv").write_text("participant_id\tsession_id\tdose\nsub-01\tses-1\t0\nsub-01\tses-2\t5\n")
    table = tables.read_sessions(tmp_path / "s.tsv")
    assert list(table.index) == [("01", "1"), ("01", "2")]
    assert list(table.index.names) == ["subject", "session"]
    assert table.loc[("01", "2"), "dose"] == 5


def test_check_ids__names_what_is_missing_and_what_is_alike():
    tables.check_ids(["01"], pd.Index(["01", "02"]), what="participants table")
    with pytest.raises(KconnError, match=r"E-ID-MISSING .*004.*the table has 4"):
        tables.check_ids(["004"], ["4", "5"], what="participants table")


def test_read_timeseries__real_table_with_repeated_names(shared_data):
    n = 200
    path = shared_data / "rpn_bochum/regional_timeseries/bochum-004_pumi-0.tsv"
    table = tables.read_timeseries(path, orientation="time-by-node", n_time=n)
    assert np.shape(table.values) == (123, n)
    assert "L_IPlob_2" in table.names
    expected = np.loadtxt(path, delimiter="\t", skiprows=1)
    np.testing.assert_array_equal(table.values, expected.T)
    fd_path = shared_data / "rpn_bochum/framewise_displacement/FD_bochum-004_pumi-0.txt"
    fd = tables.read_vector(fd_path, n_time=n)
    assert np.isnan(fd[0])
    np.testing.assert_array_equal(fd[1:], np.loadtxt(fd_path, skiprows=1))


def test_read_timeseries__real_tables_without_header(shared_data):
    path = shared_data / "hcp12_dk70/000/rfMRI_REST1_LR_BOLD.csv"
    table = tables.read_timeseries(path, orientation="time-by-node", n_time=1200, n_node=70)
    np.testing.assert_array_equal(table.values, np.loadtxt(path).T)
    path = shared_data / "stages8/ses-1/ts_sub-001_ses-1.txt"
    table = tables.read_timeseries(path, orientation="node-by-time", n_node=419)
    assert np.shape(table.values) == (419, 234)
    np.testing.assert_array_equal(table.values, np.loadtxt(path))
    assert code_of(tables.read_timeseries, path, orientation="time-by-node", n_time=234) == "E-ORIENTATION"


def test_read_confounds__real_old_table(shared_data):
    path = shared_data / "uclacnp_sub50005/sub-50005_task-rest_bold_confounds.tsv"
    table = tables.read_confounds(path, n_time=152)
    expected = pd.read_csv(path, sep="\t", na_values="n/a")
    np.testing.assert_allclose(table.values, expected.to_numpy(), rtol=1e-14)
    assert table.names == tuple(expected.columns)
    assert table.notes == ("4 confounds are n/a in the first frame alone",)


def test_read_participants__real_table(shared_data):
    path = shared_data / "rpn_bochum/bochum_sample.csv"
    table = tables.read_participants(path, id_column="ID", id_format="{:03d}")
    assert "004" in table.index
    expected = pd.read_csv(path)
    for name in expected.columns[1:]:
        np.testing.assert_array_equal(table[name].to_numpy(float), expected[name].to_numpy(float))
