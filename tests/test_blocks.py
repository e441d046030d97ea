"""Blocks and variance groups from columns."""

import numpy as np
import pandas as pd
import pytest

from kconn.errors import DesignError
from kconn.infer.blocks import code_blocks, read_groups, refuse_dependent

ROWS = pd.DataFrame(
    {
        "family": ["x", "x", "y", "y"],
        "site": [1, 1, 2, 2],
        "palm": [-1, -1, -2, -2],
        "level": [1, 1, 1, 1],
        "half": [0.5, 1, 2, 2],
        "zero": [0, 1, 1, 2],
        "gap": ["x", None, "y", "y"],
        "subject": ["01", "01", "02", "03"],
    },
    index=list("abcd"),
)


@pytest.mark.parametrize(
    ("columns", "exchange", "expected"),
    [
        (["family"], "within", [[1], [1], [2], [2]]),
        (["family"], "whole", [[-1], [-1], [-2], [-2]]),
        (["family"], "both", [[1, 1], [1, 1], [1, 2], [1, 2]]),
        (["site"], "within", [[1], [1], [2], [2]]),
        (["palm"], "within", [[-1], [-1], [-2], [-2]]),
        (["level", "palm"], "within", [[1, -1], [1, -1], [1, -2], [1, -2]]),
    ],
)
def test_code_blocks__signs_say_what_is_exchanged(columns, exchange, expected):
    blocks = code_blocks(ROWS, columns, exchange=exchange)
    assert blocks.index.tolist() == list("abcd")
    np.testing.assert_array_equal(blocks, expected)


@pytest.mark.parametrize(
    ("columns", "exchange", "code"),
    [
        (["palm"], "whole", "E-BLOCKS"),
        (["level", "site"], "both", "E-BLOCKS"),
        (["half"], "within", "E-BLOCKS"),
        (["zero"], "within", "E-BLOCKS"),
        (["gap"], "within", "E-COV-NAN"),
        (["famili"], "within", "E-DESIGN-FORMULA"),
    ],
)
def test_code_blocks__refuses(columns, exchange, code):
    with pytest.raises(DesignError) as caught:
        code_blocks(ROWS, columns, exchange=exchange)
    assert caught.value.code == code
    assert caught.value.fix


def test_read_groups__needs_a_label_for_every_row():
    assert read_groups(ROWS, "site").tolist() == ["1", "1", "2", "2"]
    with pytest.raises(DesignError, match="E-COV-NAN"):
        read_groups(ROWS, "gap")


def test_refuse_dependent__names_the_subject():
    with pytest.raises(DesignError, match="'01' has 2 sessions"):
        refuse_dependent(ROWS)
    refuse_dependent(ROWS[1:])
