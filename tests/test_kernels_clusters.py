import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from kconn.errors import DesignError
from kconn.kernels import clusters

SHAPE = (9, 8, 7)


@pytest.fixture(scope="module")
def volume():
    """A smooth map inside a mask."""
    rng = np.random.default_rng(3)
    values = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
    mask = rng.uniform(size=SHAPE) < 0.85
    return 3 * values / values.std(), mask


def graph_of(mask, connectivity):
    return clusters.build_graph(clusters.volume_pairs(np.argwhere(mask), connectivity), int(mask.sum()))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_find_clusters__equals_scipy(volume, connectivity):
    values, mask = volume
    labels, n_label = ndimage.label(
        (values >= 0.5) & mask, ndimage.generate_binary_structure(3, clusters.CONNECTIVITY[connectivity])
    )
    active = np.flatnonzero(values[mask] >= 0.5)
    found = clusters.find_clusters(active, graph_of(mask, connectivity), int(mask.sum()))
    extent = clusters.sum_clusters(found, np.ones(active.size))
    sizes = np.bincount(labels.ravel())
    np.testing.assert_array_equal(extent, sizes[labels[mask][active]])
    mass = clusters.sum_clusters(found, values[mask][active])
    masses = ndimage.sum_labels(values, labels, np.arange(n_label + 1))
    np.testing.assert_allclose(mass, masses[labels[mask][active]])
    numbers = clusters.number_clusters(found)
    assert set(numbers) == set(range(1, n_label + 1))
    by_number = [extent[numbers == n][0] for n in range(1, n_label + 1)]
    assert by_number == sorted(by_number, reverse=True)


def test_find_clusters__network_equals_scipy():
    rng = np.random.default_rng(0)
    n_node = 30
    node_i, node_j = np.triu_indices(n_node, 1)
    network = clusters.Network(node_i=node_i, node_j=node_j, n_node=n_node)
    active = np.flatnonzero(rng.uniform(size=node_i.size) < 0.03)
    extent = clusters.sum_clusters(clusters.find_clusters(active, network, node_i.size), np.ones(active.size))
    adjacency = np.zeros((n_node, n_node))
    adjacency[node_i[active], node_j[active]] = 1
    _, component = connected_components(adjacency, directed=False)
    expected = np.bincount(component[node_i[active]])[component[node_i[active]]]
    np.testing.assert_array_equal(extent, expected)
    # The same as clusters of edges that share a node.
    share = [(a, b) for a in range(node_i.size) for b in range(a) if {node_i[a], node_j[a]} & {node_i[b], node_j[b]}]
    graph = clusters.build_graph(np.array(share), node_i.size)
    same = clusters.sum_clusters(clusters.find_clusters(active, graph, node_i.size), np.ones(active.size))
    np.testing.assert_array_equal(same, extent)


def enhance_loop(values, mask, options):
    """The definition: every height, every cluster."""
    out = np.zeros(SHAPE)
    step = options.step
    for height in np.arange(step, values[mask].max() + 1e-12, step):
        labels, _ = ndimage.label((values >= height - 1e-12) & mask)
        extent = np.bincount(labels.ravel())[labels]
        out += np.where(labels > 0, extent**options.extent * height**options.height * step, 0)
    return out[mask]


@pytest.mark.parametrize("options", [clusters.Tfce(step=0.05), clusters.Tfce(step=0.11, height=1.5, extent=0.8)])
def test_enhance__equals_a_loop_over_heights(volume, options):
    values, mask = volume
    found = clusters.enhance(values[mask], graph_of(mask, 6), options, clusters.Heights(step=options.step))
    np.testing.assert_allclose(found, enhance_loop(values, mask, options), rtol=1e-9, atol=1e-12)


def test_heights__strictly_above_or_at():
    levels = np.array([0.3, 0.2, 0.15])
    at = clusters.Heights(step=0.1, times_step=False).integrate(levels, 1.0)
    above = clusters.Heights(step=0.1, times_step=False, strict=True).integrate(levels, 1.0)
    np.testing.assert_allclose(at, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(above, [0.3, 0.1, 0.1])


def test_enhance__exact_is_the_limit_of_small_steps(volume):
    values, mask = volume
    graph = graph_of(mask, 6)
    exact = clusters.enhance(values[mask], graph, clusters.Tfce(), clusters.Heights())
    fine = clusters.enhance(values[mask], graph, clusters.Tfce(), clusters.Heights(step=1e-5))
    np.testing.assert_allclose(exact, fine, rtol=1e-3, atol=1e-3 * exact.max())
    assert (exact[values[mask] <= 0] == 0).all()


def test_enhance__nothing_above_zero(volume):
    values, mask = volume
    assert not clusters.enhance(-np.abs(values[mask]), graph_of(mask, 6), clusters.Tfce(), clusters.Heights()).any()


def test_enhance__plateaus_do_not_depend_on_order():
    graph = clusters.build_graph(np.array([[0, 1], [1, 2], [3, 4]]), 5)
    found = clusters.enhance(np.array([2.0, 2, 2, 2, 2]), graph, clusters.Tfce(), clusters.Heights())
    np.testing.assert_allclose(found, np.sqrt([3, 3, 3, 2, 2]) * 8 / 3)


@pytest.mark.parametrize("pairs", [np.zeros((3, 3), dtype=int), np.array([[0, 9]]), np.array([[0.0, 1.0]])])
def test_build_graph__refuses(pairs):
    with pytest.raises(DesignError) as caught:
        clusters.build_graph(pairs, 5)
    assert caught.value.code == "E-TABLE-SHAPE"


def test_build_graph__either_order_and_doubles():
    graph = clusters.build_graph(np.array([[0, 1], [1, 0], [2, 2], [3, 1]]), 4)
    np.testing.assert_array_equal(graph.indptr, [0, 1, 3, 3, 4])
    np.testing.assert_array_equal(graph.indices, [1, 0, 3, 1])
