import pickle
import re
from pathlib import Path

import pytest

from kconn.errors import CODES, InputError, KconnError


def test_kconn_error__says_code_place_problem_rule_and_fix():
    error = InputError("E-TR-RANGE", "TR is 30 s", where="sub-01/ses-1/run-1", rule="0.2 to 10 s", fix="state t_r")
    assert str(error) == "E-TR-RANGE [sub-01/ses-1/run-1] TR is 30 s Rule: 0.2 to 10 s Fix: state t_r"


def test_kconn_error__survives_the_way_back_from_a_worker():
    error = InputError("E-GZIP", "cut", where="sub-01", rule="whole", fix="copy again")
    error.details = "traceback"
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own object
    assert type(back) is InputError
    assert (str(back), back.code, back.details) == (str(error), "E-GZIP", "traceback")


def test_kconn_error__keeps_the_first_place():
    assert InputError("E-GZIP", "cut").at("sub-01").where == "sub-01"
    assert InputError("E-GZIP", "cut", where="sub-02").at("sub-01").where == "sub-02"


def test_kconn_error__refuses_unknown_codes():
    with pytest.raises(KeyError, match="E-NOT-THERE"):
        KconnError("E-NOT-THERE", "x")


def test_codes__every_code_in_the_source_is_in_the_table_and_used():
    source = "".join(path.read_text() for path in (Path(__file__).parents[1] / "kconn").rglob("*.py"))
    used = set(
        re.findall(r'"(E-[A-Z][A-Z-]+)"', source.split("CODES: Final", 1)[0] + source.split("class KconnError", 1)[1])
    )
    assert used <= set(CODES)
