"""Order and gaps of group matrices."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import leaves_list, linkage

from kconn.kernels import cohort as kernel
from kconn.kernels.netmats import pack_edges


def block_matrix(n=12, seed=0):
    """Two clusters, their nodes interleaved."""
    rng = np.random.default_rng(seed)
    cluster = np.arange(n) % 2
    matrix = np.where(cluster[:, None] == cluster, 0.8, -0.1) + rng.normal(size=(n, n)) * 0.02
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 0)
    return matrix


def fslnets_order(matrix):
    """Follow FSLNets' nets_hierarchy, with SciPy's linkage."""
    matrix = matrix / np.percentile(np.abs(matrix.ravel()), 99)
    weight = np.maximum(np.minimum(matrix, 1), 0)
    n = len(matrix)
    distance = [0.5 - weight[i, j] / 2 for i in range(n) for j in range(i + 1, n)]
    return leaves_list(linkage(distance, method="ward", optimal_ordering=True))


def test_ward_order__matches_fslnets_rule():
    matrix = block_matrix()
    np.testing.assert_array_equal(kernel.ward_order(pack_edges(matrix)), fslnets_order(matrix))


def test_ward_order__brings_clusters_together():
    order = kernel.ward_order(pack_edges(block_matrix()))
    assert sorted(order) == list(range(12))
    assert len(set(order[:6] % 2)) == 1


def test_ward_order__puts_nodes_without_data_last():
    matrix = block_matrix()
    matrix[[3, 8]] = matrix[:, [3, 8]] = np.nan
    matrix[1, 2] = matrix[2, 1] = np.nan
    order = kernel.ward_order(pack_edges(matrix))
    assert sorted(order) == list(range(12))
    assert order[-3:].tolist() == [1, 3, 8]


@pytest.mark.parametrize("n", [2, 3])
def test_ward_order__of_few_nodes(n):
    assert sorted(kernel.ward_order(np.full(n * (n - 1) // 2, 0.5))) == list(range(n))


def test_ward_tree__of_an_empty_matrix_exists():
    assert kernel.ward_tree(np.zeros(6)).shape == (3, 4)


def test_find_missing_nodes__needs_all_edges_to_be_nan():
    matrix = np.zeros((2, 4, 4))
    matrix[0, 1] = matrix[0, :, 1] = np.nan
    matrix[1, 0, 2] = matrix[1, 2, 0] = np.nan
    expected = [[False, True, False, False], [False] * 4]
    np.testing.assert_array_equal(kernel.find_missing_nodes(pack_edges(matrix)), expected)


def test_reorder_edges__joins_nodes_by_name():
    names, wanted = np.array(["d", "a", "c", "b"]), np.array(["a", "b", "c", "d"])
    matrix = block_matrix(4)
    order = [1, 3, 2, 0]
    moved = pack_edges(matrix)[kernel.reorder_edges(names, wanted)]
    np.testing.assert_array_equal(moved, pack_edges(matrix[np.ix_(order, order)]))


def test_mean_present__does_not_depend_on_layout():
    x = np.random.default_rng(0).normal(size=(30, 40))
    x[3, :] = np.nan
    x[5, 7:] = np.nan
    expected = kernel.mean_present(x)
    np.testing.assert_array_equal(kernel.mean_present(np.asfortranarray(x)), expected)
    np.testing.assert_array_equal([kernel.mean_present(row) for row in x], expected)
    assert np.isnan(expected[3])
    np.testing.assert_allclose(expected[5], x[5, :7].mean())
    np.testing.assert_allclose(expected[6:], x[6:].mean(axis=1))
