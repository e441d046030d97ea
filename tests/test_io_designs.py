import numpy as np
import pytest

from kconn.errors import InputError
from kconn.infer.inference import permutation_test
from kconn.io import designs

MATRIX = np.column_stack([np.ones(6), [0, 1, 0, 1, 0, 1], np.array([0.1, 1 / 3, -2.5e-7, 4, 1e9, 0])])
CONTRASTS = {"group": np.array([0.0, 1, 0]), "both": np.array([[0.0, 1, 0], [0, 0, 1]])}

FSL_MAT = """/NumWaves\t2
/NumPoints\t4
/PPheights\t\t1.000000e+00\t1.000000e+00

/Matrix
1.000000e+00\t0.000000e+00\t
1.000000e+00\t0.000000e+00\t
0.000000e+00\t1.000000e+00\t
0.000000e+00\t1.000000e+00\t
"""
FSL_CON = """/ContrastName1\t"A > B"
/ContrastName2\tB > A
/NumWaves\t2
/NumContrasts\t2
/PPheights\t\t1.000000e+00\t1.000000e+00
/RequiredEffect\t\t1.0\t1.0

/Matrix
1.000000e+00 -1.000000e+00
-1.000000e+00 1.000000e+00
"""


def test_read_fsl_design__as_the_gui_writes_it(tmp_path):
    (tmp_path / "design.mat").write_text(FSL_MAT)
    (tmp_path / "design.con").write_text(FSL_CON)
    (tmp_path / "design.grp").write_text("/NumWaves 1\n/NumPoints 4\n\n/Matrix\n1\n1\n2\n2\n")
    found = designs.read_fsl_design(tmp_path / "design")
    np.testing.assert_array_equal(found.matrix, [[1, 0], [1, 0], [0, 1], [0, 1]])
    assert list(found.contrasts) == ["A > B", "B > A"]
    np.testing.assert_array_equal(found.contrasts["A > B"], [1, -1])
    np.testing.assert_array_equal(found.groups, [1, 1, 2, 2])


def test_write_fsl_design__reads_back(tmp_path):
    groups = np.array([1, 1, 2, 2, 3, 3])
    paths = designs.write_fsl_design(tmp_path / "new" / "study.v1", MATRIX, CONTRASTS, groups)
    assert [path.name for path in paths] == ["study.v1.mat", "study.v1.con", "study.v1.fts", "study.v1.grp"]
    found = designs.read_fsl_design(tmp_path / "new" / "study.v1")
    np.testing.assert_array_equal(found.matrix, MATRIX)
    np.testing.assert_array_equal(found.groups, groups)
    assert list(found.contrasts) == ["group", "both_1", "both_2", "f1"]
    np.testing.assert_array_equal(found.contrasts["f1"], CONTRASTS["both"])


def test_read_fsl_design__design_alone(tmp_path):
    (tmp_path / "design.mat").write_text(FSL_MAT)
    found = designs.read_fsl_design(tmp_path / "design")
    assert found.contrasts == {}
    assert found.groups is None


def test_read_fsl_design__goes_into_a_test(tmp_path):
    (tmp_path / "design.mat").write_text(FSL_MAT)
    (tmp_path / "design.con").write_text(FSL_CON)
    found = designs.read_fsl_design(tmp_path / "design")
    data = np.random.default_rng(0).normal(size=(4, 3))
    res = permutation_test(data, found.matrix, found.contrasts, n_perm=10, seed=0)
    assert res["contrast"].to_numpy().tolist() == ["A > B", "B > A"]


def test_palm_table__reads_back_and_reads_palms_own(tmp_path, palm_oracles):
    path = designs.write_palm_table(tmp_path / "a" / "X.csv", MATRIX)
    np.testing.assert_array_equal(designs.read_palm_table(path), MATRIX)
    folder = palm_oracles / "two_sample_cov"
    np.testing.assert_array_equal(
        designs.read_palm_table(folder / "X.csv"), np.loadtxt(folder / "X.csv", delimiter=",")
    )
    vector = designs.write_palm_table(tmp_path / "EB.csv", np.array([[1], [2]]))
    np.testing.assert_array_equal(designs.read_palm_table(vector), [[1], [2]])


@pytest.mark.parametrize(
    ("suffix", "text", "code"),
    [
        (".mat", None, "E-FILE-MISSING"),
        (".mat", "1 0\n0 1\n", "E-TABLE"),
        (".mat", "/Matrix\n1 a\n", "E-TABLE"),
        (".mat", "/Matrix\n1 0\n1\n", "E-TABLE-SHAPE"),
        (".mat", "/Matrix\n", "E-TABLE-SHAPE"),
        (".mat", "/NumWaves 3\n/Matrix\n1 0\n", "E-TABLE-SHAPE"),
        (".mat", b"\xff\xfe\x00", "E-TABLE"),
        (".con", "/Matrix\n1 0 0\n", "E-TABLE-SHAPE"),
        (".fts", "/Matrix\n1 1\n", "E-TABLE-SHAPE"),
        (".grp", "/Matrix\n1\n2\n", "E-TABLE-SHAPE"),
    ],
)
def test_read_fsl_design__refuses(tmp_path, suffix, text, code):
    (tmp_path / "design.mat").write_text(FSL_MAT)
    path = tmp_path / f"design{suffix}"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        designs.read_fsl_design(tmp_path / "design")
    assert caught.value.code == code
    assert path.name in str(caught.value)
