"""Head motion: against a plain loop and against the column that fMRIPrep wrote."""

import numpy as np
import pandas as pd

from kconn.kernels.motion import backward_difference, fill_first_frame, framewise_displacement, keep_frames


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


def test_keep_frames__keeps_the_threshold_itself():
    kept = keep_frames(np.array([0.0, 0.5, 0.51, 0.1]), threshold=0.5, n_dummy=1)

    np.testing.assert_array_equal(kept, [False, True, False, True])
