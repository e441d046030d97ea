"""Sphere membership: against brute force over the whole grid."""

import numpy as np
import pytest

from kconn.kernels.spheres import sphere_members

OBLIQUE = np.array([[-2.9, 0.1, 0.3, 40], [0.2, 2.8, -0.7, -30], [0.1, 0.6, 3.2, -20], [0, 0, 0, 1]])


def brute_force(centre, radius, affine, shape):
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1)
    mm = affine[:3, :3] @ ijk + affine[:3, 3:]
    near = ((mm - np.asarray(centre)[:, None]) ** 2).sum(axis=0) <= radius**2
    return np.sort(np.ravel_multi_index(ijk[:, near], shape, order="F"))


@pytest.mark.parametrize("affine", [np.diag([2.0, 2, 2, 1]), OBLIQUE])
@pytest.mark.parametrize("radius", [3.0, 5.0, 7.5])
def test_sphere_members__matches_brute_force(affine, radius):
    shape = (20, 18, 15)
    centres = (affine @ np.array([[10, 9, 7, 1], [6.3, 8.1, 5.9, 1], [11, 9, 7, 1]]).T).T[:, :3]
    members = sphere_members(centres, np.full(3, radius), affine, shape)
    node = members.node
    voxel = np.repeat(members.voxel, np.diff(members.start))
    for i, centre in enumerate(centres):
        expected = brute_force(centre, radius, affine, shape)
        np.testing.assert_array_equal(np.sort(voxel[node == i]), expected)
        assert members.n_voxel[i] == expected.size


def test_sphere_members__takes_the_border():
    members = sphere_members(np.array([[4.0, 4, 4]]), np.array([2.0]), np.diag([2.0, 2, 2, 1]), (5, 5, 5))
    assert members.voxel.size == 7


def test_sphere_members__of_less_than_a_voxel_is_the_voxel_of_its_centre():
    members = sphere_members(np.array([[4.9, 4, 4]]), np.array([0.1]), np.diag([2.0, 2, 2, 1]), (5, 5, 5))
    assert members.voxel.tolist() == [2 + 5 * (2 + 5 * 2)]


def test_sphere_members__counts_voxels_beyond_the_grid():
    centres = np.array([[0.0, 4, 4], [100, 0, 0]])
    members = sphere_members(centres, np.array([2.0, 2.0]), np.diag([2.0, 2, 2, 1]), (5, 5, 5))
    assert members.n_voxel.tolist() == [7, 7]
    assert (members.node == 0).sum() == 6
    assert (members.node == 1).sum() == 0
