import pytest
from hypothesis import given
from hypothesis import strategies as st

from kconn.chunks import BLOCK_BYTES, MIB, ROW_BYTES, plan_bold, plan_chunks, plan_voxel_blocks
from kconn.errors import SchemaError


@pytest.mark.parametrize(
    ("shape", "itemsize", "max_mem", "whole", "expected"),
    [
        ((90_000, 1_200), 4, 64 * MIB, (1,), (13_981, 1_200)),
        ((10, 10), 8, 10_000, (), (10, 10)),
        ((10, 10), 8, 80, (), (1, 10)),
        ((10, 10), 8, 8, (), (1, 1)),
        ((10, 10), 8, 80, (0,), (10, 1)),
    ],
)
def test_plan_chunks__table(shape, itemsize, max_mem, whole, expected):
    assert plan_chunks(shape, itemsize=itemsize, max_mem=max_mem, whole=whole) == expected


def test_plan_chunks__refuses_what_cannot_fit():
    with pytest.raises(SchemaError, match="E-MEM"):
        plan_chunks((10, 1000), itemsize=8, max_mem=100, whole=(1,))


@given(st.integers(1, 300_000), st.integers(1, 5_000), st.sampled_from([1, 2, 4, 8]))
def test_plan_bold__keeps_both_budgets(n_voxel, n_time, itemsize):
    voxel, time = plan_bold(n_voxel, n_time, itemsize=itemsize)
    assert 1 <= voxel <= n_voxel
    assert 1 <= time <= n_time
    assert voxel * n_time * 4 <= max(BLOCK_BYTES, 4 * n_time)
    assert n_voxel * time * itemsize <= ROW_BYTES + n_voxel * itemsize
    assert voxel == plan_voxel_blocks(n_voxel, n_time)
