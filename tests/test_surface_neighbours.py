import numpy as np
import pytest
import xarray as xr

from kconn.errors import DesignError, InputError, SchemaError
from kconn.grayordinates import Grayordinates
from kconn.infer.inference import permutation_test
from kconn.infer.surface_neighbours import grayordinate_neighbours
from kconn.kernels.clusters import Neighbours, Tfce
from kconn.kernels.surfaces import triangle_pairs, vertex_areas

N_OBS = 14
WALL = [3, 17, 18]


def icosphere(n_split):
    """Points on the unit sphere and triangles, from an icosahedron whose triangles are split in four."""
    phi = (1 + 5**0.5) / 2
    points = [[-1, phi, 0], [1, phi, 0], [-1, -phi, 0], [1, -phi, 0], [0, -1, phi], [0, 1, phi]]
    points += [[0, -1, -phi], [0, 1, -phi], [phi, 0, -1], [phi, 0, 1], [-phi, 0, -1], [-phi, 0, 1]]
    points = [np.array(one) / np.linalg.norm(one) for one in points]
    faces = "0 11 5 0 5 1 0 1 7 0 7 10 0 10 11 1 5 9 5 11 4 11 10 2 10 7 6 7 1 8"
    faces += " 3 9 4 3 4 2 3 2 6 3 6 8 3 8 9 4 9 5 2 4 11 6 2 10 8 6 7 9 8 1"
    faces = np.array(faces.split(), dtype=int).reshape(-1, 3)
    for _ in range(n_split):
        middle = {}
        split = []
        for face in faces:
            for i, j in zip(face, np.roll(face, -1), strict=True):
                if (min(i, j), max(i, j)) not in middle:
                    middle[min(i, j), max(i, j)] = len(points)
                    points.append((points[i] + points[j]) / np.linalg.norm(points[i] + points[j]))
            a, b, c = face
            ab, bc, ca = (middle[min(i, j), max(i, j)] for i, j in ((a, b), (b, c), (c, a)))
            split += [[a, ab, ca], [b, bc, ab], [c, ca, bc], [ab, bc, ca]]
        faces = np.array(split)
    return np.array(points), faces


@pytest.fixture(scope="module")
def brain():
    """Two spheres of 42 vertices without a wall of three, and 12 voxels of two structures; triangles, areas."""
    points, faces = icosphere(1)
    kept = np.setdiff1d(np.arange(42), WALL)
    voxels = np.argwhere(np.ones((3, 2, 2)))
    no_voxel = np.full((len(kept), 3), -1)
    places = Grayordinates(
        structures=(
            "CIFTI_STRUCTURE_CORTEX_LEFT",
            "CIFTI_STRUCTURE_CORTEX_RIGHT",
            "CIFTI_STRUCTURE_PUTAMEN_LEFT",
            "CIFTI_STRUCTURE_PALLIDUM_LEFT",
        ),
        structure=np.repeat([0, 1, 2, 3], [len(kept), len(kept), 8, 4]),
        vertex=np.concatenate([kept, kept, np.full(12, -1)]),
        ijk=np.concatenate([no_voxel, no_voxel, voxels + 10]),
        n_vertices={"CIFTI_STRUCTURE_CORTEX_LEFT": 42, "CIFTI_STRUCTURE_CORTEX_RIGHT": 42},
        affine=np.eye(4),
        grid_shape=(20, 20, 20),
    )
    triangles = {"CORTEX_LEFT": faces, "CIFTI_STRUCTURE_CORTEX_RIGHT": faces[:, ::-1]}
    areas = {"CORTEX_LEFT": vertex_areas(10 * points, faces), "CORTEX_RIGHT": vertex_areas(12 * points, faces)}
    return places, triangles, areas


@pytest.fixture(scope="module")
def maps(brain):
    places, _, _ = brain
    rng = np.random.default_rng(4)
    group = np.arange(N_OBS) % 2
    values = rng.normal(size=(N_OBS, len(places))) + 0.8 * rng.normal(size=(N_OBS, 1))
    values[:, :9] += 1.5 * group[:, None]
    values[:, 80:86] += 1.5 * group[:, None]
    data = xr.DataArray(values, dims=("observation", "voxel"), coords=places.coords(), attrs=places.attrs())
    return data, np.column_stack([np.ones(N_OBS), group])


def touch(places, faces, i, j):
    """Whether two grayordinates are neighbours, by definition."""
    if places.vertex[i] < 0 or places.vertex[j] < 0:
        both = places.vertex[i] < 0 and places.vertex[j] < 0
        return both and np.abs(places.ijk[i] - places.ijk[j]).max() == 1
    same = places.structure[i] == places.structure[j]
    return same and any(places.vertex[i] in face and places.vertex[j] in face for face in faces.tolist())


def components(active, adjacent):
    left, found = set(active), []
    while left:
        cluster, edge = set(), {left.pop()}
        while edge:
            cluster |= edge
            edge = {j for i in edge for j in left if adjacent[i, j]}
            left -= edge
        found.append(sorted(cluster))
    return found


def test_vertex_areas__sum_to_the_surface():
    points, faces = icosphere(3)
    areas = vertex_areas(points, faces)
    np.testing.assert_allclose(areas.sum(), 4 * np.pi, rtol=0.01)
    a, b, c = points[faces[0]]
    assert areas.size == len(points) == 642
    np.testing.assert_allclose(vertex_areas([a, b, c], [[0, 1, 2]]), np.linalg.norm(np.cross(b - a, c - a)) / 6)
    # Vertices less edges plus faces: Euler's number of a sphere.
    assert len(points) - len(triangle_pairs(faces)) + len(faces) == 2


def test_grayordinate_neighbours__equal_a_loop(brain):
    places, triangles, areas = brain
    found = grayordinate_neighbours(places, triangles, areas=areas)
    pairs = {tuple(sorted(pair)) for pair in found.pairs.tolist()}
    faces = triangles["CORTEX_LEFT"]
    n = len(places)
    assert pairs == {(i, j) for i in range(n) for j in range(i + 1, n) if touch(places, faces, i, j)}
    kept = np.setdiff1d(np.arange(42), WALL)
    np.testing.assert_array_equal(found.sizes[:39], areas["CORTEX_LEFT"][kept])
    np.testing.assert_array_equal(found.sizes[39:78], areas["CORTEX_RIGHT"][kept])
    np.testing.assert_array_equal(found.sizes[78:], 1)
    assert grayordinate_neighbours(places, triangles).sizes is None
    assert len(grayordinate_neighbours(places, triangles, connectivity=6).pairs) < len(found.pairs)


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("convention", ["kconn", "palm"])
@pytest.mark.parametrize("statistic", ["cluster-extent", "cluster-mass", "tfce"])
def test_permutation_test__clusters_of_grayordinates_equal_a_loop(brain, maps, statistic, convention, sized):
    _, triangles, areas = brain
    data, design = maps
    neighbours = grayordinate_neighbours(data, triangles, areas=areas if sized else None)
    options = {"tfce": Tfce(step=0.2, extent=1.0)} if statistic == "tfce" else {"threshold": 1.0}
    res = permutation_test(
        data,
        design,
        {"g": [0, 1]},
        n_perm=40,
        seed=1,
        alternative="greater",
        statistic=statistic,
        neighbours=neighbours,
        convention=convention,
        **options,
    )
    z = res["zstat"][0].to_numpy()
    size = neighbours.sizes if sized else np.ones(z.size)
    adjacent = np.zeros((z.size, z.size), dtype=bool)
    adjacent[tuple(neighbours.pairs.T)] = adjacent[tuple(neighbours.pairs[:, ::-1].T)] = True
    expected = np.zeros(z.size)
    if statistic == "tfce":
        for height in np.arange(0.2, z.max(), 0.2):
            for cluster in components(np.flatnonzero(z >= height - 1e-12), adjacent):
                expected[cluster] += size[cluster].sum() * height**2 * 0.2
    else:
        for cluster in components(np.flatnonzero(z >= 1), adjacent):
            excess = z[cluster] - (1 if convention == "kconn" else 0)
            weight = size[cluster] if convention == "kconn" else 1
            expected[cluster] = size[cluster].sum() if statistic == "cluster-extent" else (excess * weight).sum()
    assert (expected > 0).sum() > 8
    np.testing.assert_allclose(res["enhanced"][0], expected, rtol=1e-9)
    np.testing.assert_allclose(res["max_stat"][0, 0], expected.max(), rtol=1e-9)
    assert (res["p_fwe"] > 0).all()


def test_grayordinate_neighbours__refuses_other_surfaces(brain, maps):
    places, triangles, areas = brain
    with pytest.raises(InputError, match="no triangles of CORTEX_RIGHT"):
        grayordinate_neighbours(places, {"CORTEX_LEFT": triangles["CORTEX_LEFT"]})
    with pytest.raises(InputError, match="other vertices"):
        grayordinate_neighbours(places, {**triangles, "CORTEX_LEFT": icosphere(2)[1]})
    with pytest.raises(InputError, match="areas of CORTEX_LEFT have shape"):
        grayordinate_neighbours(places, triangles, areas={**areas, "CORTEX_LEFT": np.ones(7)})
    with pytest.raises(SchemaError, match="connectivity=7"):
        grayordinate_neighbours(places, triangles, connectivity=7)
    data, design = maps
    options = {"n_perm": 20, "seed": 0, "statistic": "cluster-extent", "threshold": 1.0}
    with pytest.raises(SchemaError, match="vertices of a surface"):
        permutation_test(data, design, {"g": [0, 1]}, neighbours=26, **options)
    bad = Neighbours(pairs=np.array([[0, 1]]), sizes=np.zeros(data.shape[1]))
    with pytest.raises(DesignError, match="not above 0"):
        permutation_test(data, design, {"g": [0, 1]}, neighbours=bad, **options)
