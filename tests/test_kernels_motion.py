"""Head motion: against a plain loop and against the column that fMRIPrep wrote."""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import filtfilt, iirnotch
from scipy.spatial.transform import Rotation

from kconn.kernels.motion import (
    backward_difference,
    drop_short_segments,
    fill_first_frame,
    fold_frequency,
    framewise_displacement,
    rms_displacement,
    widen_gaps,
    without_breathing,
)


def displacement_loop(motion, radius):
    out = [0.0]
    for t in range(1, len(motion)):
        step = [abs(motion[t][i] - motion[t - 1][i]) for i in range(6)]
        out.append(sum(step[:3]) + radius * sum(step[3:]))
    return np.array(out)


def test_framewise_displacement__equals_loop():
    motion = np.random.default_rng(0).normal(size=(40, 6))

    np.testing.assert_allclose(framewise_displacement(motion, radius=50.0), displacement_loop(motion, 50.0), rtol=1e-13)


def test_framewise_displacement__equals_the_column_of_fmriprep(shared_data):
    file = shared_data / "uclacnp_sub50005" / "sub-50005_task-rest_bold_confounds.tsv"
    table = pd.read_csv(file, sep="\t", na_values="n/a")

    actual = framewise_displacement(table[["X", "Y", "Z", "RotX", "RotY", "RotZ"]].to_numpy(), radius=50.0)

    # Motion is printed with 6 significant digits, displacement with 9.
    np.testing.assert_allclose(actual[1:], table["FramewiseDisplacement"][1:], atol=2e-6)
    assert actual[0] == 0


def test_backward_difference__is_zero_first():
    np.testing.assert_array_equal(backward_difference(np.array([[1.0], [4.0], [2.0]])), [[0.0], [3.0], [-2.0]])


def test_fill_first_frame__leaves_later_nan():
    filled = fill_first_frame(np.array([[np.nan, 5.0], [np.nan, 1.0]]))

    np.testing.assert_array_equal(filled, [[0.0, 5.0], [np.nan, 1.0]])


def test_rms_displacement__equals_the_formula_in_a_plain_loop():
    rng = np.random.default_rng(2)
    motion = np.column_stack([rng.normal(size=(9, 3)), rng.normal(size=(9, 3)) * 0.1])

    def transform(row):
        (cx, cy, cz), (sx, sy, sz) = np.cos(row[3:]), np.sin(row[3:])
        turn = (
            np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
            @ np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
            @ np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
        )
        return np.vstack([np.column_stack([turn, row[:3]]), [0, 0, 0, 1]])

    actual = rms_displacement(motion, radius=80.0)

    for t in range(1, 9):
        # Jenkinson 1999: sqrt(R^2 / 5 trace(A' A) + t' t), of T_t T_(t-1)^-1 - 1.
        M = transform(motion[t]) @ np.linalg.inv(transform(motion[t - 1])) - np.eye(4)
        expected = np.sqrt(80.0**2 / 5 * np.trace(M[:3, :3].T @ M[:3, :3]) + M[:3, 3] @ M[:3, 3])
        assert actual[t] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("around", "expected"), [((0, 0), "1110111110"), ((1, 0), "1100111100"), ((0, 2), "1110001110"), ((9, 9), "0" * 10)]
)
def test_widen_gaps__drops_frames_around(around, expected):
    kept = np.array([c == "1" for c in "1110111110"])

    actual = widen_gaps(kept, n_before=around[0], n_after=around[1])

    assert "".join("01"[int(k)] for k in actual) == expected


@pytest.mark.parametrize(("frequency", "seen"), [(0.1, 0.1), (0.3, 0.2), (0.5, 0.0), (0.75, 0.25), (0.6, 0.1)])
def test_fold_frequency__is_where_an_alias_is_seen(frequency, seen):
    assert fold_frequency(frequency, t_r=2.0) == pytest.approx(seen)


@pytest.mark.parametrize(("band", "t_r"), [((0.25, 0.35), 0.8), ((0.31, 0.43), 2.0), (0.1, 0.8)])
def test_without_breathing__takes_the_breath_and_leaves_the_drift(band, t_r):
    t = np.arange(400) * t_r
    breath = np.sin(2 * np.pi * np.mean(band if isinstance(band, tuple) else 0.3) * t)
    drift = 0.002 * t + np.sin(2 * np.pi * 0.01 * t)

    left = without_breathing(np.column_stack([breath, drift]), t_r=t_r, band=band)

    inner = slice(40, -40)
    assert left[inner, 0].std() < 0.05 * breath.std()
    np.testing.assert_allclose(left[inner, 1], drift[inner], atol=0.08)


def test_without_breathing__equals_the_recipe_of_the_notch():
    motion = np.random.default_rng(0).normal(size=(150, 6)).cumsum(axis=0)
    w0, width = (0.2 + 0.3) / 2, 0.3 - 0.2
    b, a = iirnotch(w0, w0 / width, fs=1 / 0.8)

    expected = filtfilt(b, a, motion, axis=0, padtype="constant", padlen=149)

    np.testing.assert_allclose(without_breathing(motion, t_r=0.8, band=(0.2, 0.3)), expected, atol=1e-10)


def test_rms_displacement__equals_the_mean_over_points_of_a_sphere():
    rng = np.random.default_rng(0)
    motion = np.column_stack([rng.normal(size=(6, 3)), rng.normal(size=(6, 3)) * 0.05])
    axes = np.meshgrid(*[np.linspace(-80, 80, 81)] * 3, indexing="ij")
    points = np.stack(axes, axis=-1).reshape(-1, 3)
    points = points[(points**2).sum(axis=1) <= 80**2]

    actual = rms_displacement(motion, radius=80.0)

    # Points as they lie in one frame, carried back to the head and on to the next frame. FSL turns the axes, SciPy
    # the points: the angles change sign.
    for t in range(1, 6):
        before = Rotation.from_euler("zyx", -motion[t - 1, :2:-1]).as_matrix()
        origin = (points - motion[t - 1, :3]) @ before
        after = origin @ Rotation.from_euler("zyx", -motion[t, :2:-1]).as_matrix().T + motion[t, :3]
        expected = np.sqrt(((after - points) ** 2).sum(axis=1).mean())
        assert actual[t] == pytest.approx(expected, rel=2e-3)
    assert actual[0] == 0


def test_rms_displacement__of_a_shift_is_its_length():
    motion = np.zeros((2, 6))
    motion[1, :3] = [3.0, 4.0, 12.0]

    np.testing.assert_allclose(rms_displacement(motion, radius=80.0), [0.0, 13.0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rms_displacement__of_a_turn_is_its_mean_arc(axis):
    motion = np.zeros((2, 6))
    motion[1, 3 + axis] = 0.01

    # Mean squared distance from an axis in a sphere: 2/5 of the squared radius.
    np.testing.assert_allclose(rms_displacement(motion, radius=80.0)[1], np.sqrt(2 / 5) * 80 * 0.01, rtol=1e-4)


@pytest.mark.parametrize(
    ("min_segment", "expected"), [(1, "1101110111"), (3, "0001110111"), (4, "0000000000"), (2, "1101110111")]
)
def test_drop_short_segments__leaves_long_stretches(min_segment, expected):
    kept = np.array([c == "1" for c in "1101110111"])

    actual = drop_short_segments(kept, min_segment=min_segment)

    assert "".join("01"[int(k)] for k in actual) == expected
