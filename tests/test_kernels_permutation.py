from itertools import permutations

import numpy as np
import pytest

from kconn.errors import DesignError
from kconn.kernels import permutation as pm


def sequences(shuffling, labels):
    signs = 1 if shuffling.signs is None else shuffling.signs
    return {tuple(row) for row in np.asarray(labels)[shuffling.permutations] * signs}


def assert_table_valid(shuffling):
    n_obs = shuffling.permutations.shape[1]
    np.testing.assert_array_equal(shuffling.permutations[0], np.arange(n_obs))
    np.testing.assert_array_equal(
        np.sort(shuffling.permutations, axis=1), np.tile(np.arange(n_obs), (shuffling.n_perm, 1))
    )
    if shuffling.signs is not None:
        assert set(np.unique(shuffling.signs)) <= {-1, 1}
        assert (shuffling.signs[0] == 1).all()


def test_plan_shuffling__enumerates_every_sequence_once():
    labels = np.array([1, 2, 1, 3, 2, 1])
    shuffling = pm.plan_shuffling(labels, n_perm=60, seed=0)
    assert shuffling.exhaustive
    assert shuffling.n_distinct == shuffling.n_perm == 60
    assert_table_valid(shuffling)
    assert sequences(shuffling, labels) == set(permutations(labels.tolist()))


def test_plan_shuffling__draws_distinct_sequences():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    shuffling = pm.plan_shuffling(labels, n_perm=69, seed=5)
    assert not shuffling.exhaustive
    assert_table_valid(shuffling)
    assert len(sequences(shuffling, labels + 1)) == 69


@pytest.mark.faults("seeds")
def test_plan_shuffling__a_shorter_table_is_the_start_of_a_longer_one():
    labels = np.arange(30)
    long = pm.plan_shuffling(labels, n_perm=9000, seed=11)
    short = pm.plan_shuffling(labels, n_perm=500, seed=11)
    np.testing.assert_array_equal(long.permutations[:500], short.permutations)
    other = pm.plan_shuffling(labels, n_perm=500, seed=12)
    assert other.sha256 != short.sha256
    assert short.sha256 == pm.plan_shuffling(labels, n_perm=500, seed=11).sha256


def test_plan_shuffling__every_place_is_equally_likely():
    table = pm.plan_shuffling(np.arange(10), n_perm=5000, seed=2).permutations[1:]
    counts = np.array([np.bincount(column, minlength=10) for column in table.T])
    expected = len(table) / 10
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 81 + 4 * np.sqrt(2 * 81)


def test_plan_shuffling__within_blocks():
    tree = pm.exchange_tree(np.array([1, 1, 2, 2, 3, 3]))
    labels = np.array([0, 1, 0, 1, 0, 1])
    shuffling = pm.plan_shuffling(labels, n_perm=100, seed=0, tree=tree)
    assert shuffling.n_distinct == 8
    assert len(sequences(shuffling, labels)) == 8
    np.testing.assert_array_equal(shuffling.permutations // 2, np.tile([0, 0, 1, 1, 2, 2], (8, 1)))


def test_plan_shuffling__whole_blocks():
    tree = pm.exchange_tree(-np.array([1, 1, 2, 2, 3, 3, 4, 4]))
    labels = np.array([0, 1, 0, 1, 2, 3, 2, 3])
    shuffling = pm.plan_shuffling(labels, n_perm=100, seed=0, tree=tree)
    assert shuffling.n_distinct == 6
    assert_table_valid(shuffling)
    assert len(sequences(shuffling, labels)) == 6
    # The order within a block is kept.
    assert (shuffling.permutations[:, 1::2] - shuffling.permutations[:, ::2] == 1).all()
    drawn = pm.plan_shuffling(np.arange(8), n_perm=20, seed=0, tree=tree)
    assert drawn.n_distinct == 24
    assert (drawn.permutations[:, 1::2] - drawn.permutations[:, ::2] == 1).all()


def test_plan_shuffling__multi_level_blocks():
    # Two families may change places as wholes, the two twins of each may change places, and visits keep their order.
    table = np.array([[1, f, t] for f in (1, 2) for t in (-1, -2) for _ in range(2)])
    tree = pm.exchange_tree(table)
    shuffling = pm.plan_shuffling(np.arange(8), n_perm=100, seed=0, tree=tree)
    assert shuffling.n_distinct == shuffling.n_perm == 8
    assert_table_valid(shuffling)
    assert len(sequences(shuffling, np.arange(8))) == 8
    assert (shuffling.permutations[:, 1::2] - shuffling.permutations[:, ::2] == 1).all()
    drawn = pm.plan_shuffling(np.arange(8), n_perm=5, seed=0, tree=tree)
    assert sequences(drawn, np.arange(8)) <= sequences(shuffling, np.arange(8))
    assert len(pm.flip_units(tree)) == 4


def test_plan_shuffling__blocks_that_keep_their_place():
    table = np.array([[-1, 1], [-1, 1], [-1, 1], [-2, 1], [-2, 1]])
    tree = pm.exchange_tree(table)
    assert pm.count_permutations(tree, np.arange(5)) == 12


def test_plan_shuffling__sign_flips():
    everything = pm.plan_shuffling(np.zeros(4, dtype=int), n_perm=16, seed=0, kind="sign-flips")
    assert everything.exhaustive
    assert_table_valid(everything)
    assert len(sequences(everything, np.ones(4, dtype=int))) == 16
    drawn = pm.plan_shuffling(np.zeros(20, dtype=int), n_perm=500, seed=0, kind="sign-flips")
    assert_table_valid(drawn)
    assert len(sequences(drawn, np.ones(20, dtype=int))) == 500
    np.testing.assert_allclose(drawn.signs[1:].mean(), 0, atol=4 / np.sqrt(500 * 20))


def test_plan_shuffling__whole_blocks_flip_as_one():
    tree = pm.exchange_tree(-np.array([1, 1, 2, 2, 3, 3]))
    flips = pm.plan_shuffling(np.zeros(6, dtype=int), n_perm=8, seed=0, tree=tree, kind="sign-flips")
    assert flips.n_distinct == 8
    np.testing.assert_array_equal(flips.signs[:, ::2], flips.signs[:, 1::2])


def test_plan_shuffling__nothing_may_move():
    tree = pm.exchange_tree(np.array([[-1, -1], [-1, -1], [-1, -2], [-1, -2]]))
    assert pm.flip_units(tree) == []
    with pytest.raises(DesignError, match="E-PERMUTATIONS"):
        pm.plan_shuffling(np.arange(4), n_perm=10, seed=0, tree=tree)


def test_plan_shuffling__permutations_and_sign_flips():
    labels = np.array([1, 1, 2])
    both = pm.plan_shuffling(labels, n_perm=100, seed=0, kind="both")
    assert both.n_distinct == both.n_perm == 3 * 8
    assert_table_valid(both)
    assert len(sequences(both, labels)) == 24
    drawn = pm.plan_shuffling(np.arange(6), n_perm=100, seed=0, kind="both")
    assert_table_valid(drawn)
    assert len(sequences(drawn, np.arange(1, 7))) == 100


def test_plan_shuffling__one_label_has_nothing_to_permute():
    with pytest.raises(DesignError, match="1 distinct relabelling"):
        pm.plan_shuffling(np.zeros(6, dtype=int), n_perm=100, seed=0)


@pytest.mark.parametrize(
    ("blocks", "found"),
    [
        ([1, 1, 0, 2], "label 0"),
        ([1, 1, -2, -2], "mixes"),
        ([-1, -1, -2, -2, -2], r"sizes \[2, 3\]"),
        ([[1, 1], [1, -1], [1, 2], [1, 2]], "positive and a negative"),
        ([1.5, 1.5], "dtype float64"),
    ],
)
def test_exchange_tree__refuses(blocks, found):
    with pytest.raises(DesignError, match=found) as caught:
        pm.exchange_tree(np.array(blocks))
    assert caught.value.code == "E-BLOCKS"


def test_label_rows__equal_rows_share_a_label():
    labels = pm.label_rows(np.array([[0.0, 1], [-0.0, 1], [2, 1], [0, 1]]))
    assert labels[0] == labels[1] == labels[3] != labels[2]
    assert (pm.label_rows(np.empty((3, 0))) == 0).all()


def test_read_shuffling__checks_the_table():
    labels = np.array([0, 0, 1, 1])
    good = np.array([[0, 1, 2, 3], [2, 3, 0, 1]])
    table = pm.read_shuffling(good, None, labels=labels, n_distinct=6)
    assert not table.exhaustive
    np.testing.assert_array_equal(table.permutations, good)
    flips = pm.read_shuffling(None, np.array([[1, 1, 1, 1], [1, -1, 1, 1]]), labels=labels, n_distinct=16)
    np.testing.assert_array_equal(flips.permutations, [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize(
    ("table", "signs", "found"),
    [
        ([[0, 1, 2, 3], [0, 1, 2, 2]], None, "row 1 of the permutation table is no permutation"),
        ([[1, 2, 3, 4], [2, 1, 3, 4]], None, "subtract 1"),
        ([[1, 0, 2, 3], [0, 1, 2, 3]], None, "not the identity"),
        ([[0.0, 1, 2, 3], [1, 0, 2, 3]], None, "float64"),
        ([[0, 1, 2], [1, 0, 2]], None, r"shape \(2, 3\)"),
        (None, [[1, 1, 1, 1], [1, 0, 1, 1]], "other values"),
        (None, [[1, 1, 1, -1], [1, 1, 1, 1]], "row 0 flips"),
        ([[0, 1, 2, 3], [1, 0, 2, 3]], [[1, 1, 1, 1]], "sign table has shape"),
    ],
)
def test_read_shuffling__refuses(table, signs, found):
    arrays = [None if rows is None else np.array(rows) for rows in (table, signs)]
    with pytest.raises(DesignError, match=found) as caught:
        pm.read_shuffling(*arrays, labels=np.array([0, 0, 1, 1]), n_distinct=6)
    assert caught.value.code == "E-PERMUTATIONS"


def test_exchanged_sets__joins_what_any_row_exchanges():
    sets = pm.exchanged_sets(np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [0, 2, 1, 3, 4]]))
    assert sets[0] == sets[1] == sets[2]
    assert len({sets[0], sets[3], sets[4]}) == 3


def test_plan_shuffling__is_the_same_however_many_rows_are_looked_at_together(monkeypatch):
    labels, blocks = np.arange(12) % 4, np.repeat([1, 2, 3], 4)
    given = {"n_perm": 500, "seed": 5, "tree": pm.exchange_tree(blocks), "kind": "both"}
    together = pm.plan_shuffling(labels, **given)
    sets = pm.exchanged_sets(together.permutations)
    monkeypatch.setattr(pm, "ELEMENTS_AT_ONCE", 40)
    few = pm.plan_shuffling(labels, **given)
    np.testing.assert_array_equal(few.permutations, together.permutations)
    np.testing.assert_array_equal(few.signs, together.signs)
    np.testing.assert_array_equal(sets, pm.exchanged_sets(few.permutations))
    np.testing.assert_array_equal(sets, blocks - 1)


TREES = {
    "free": np.ones(6, dtype=int),
    "within": np.array([1, 1, 1, 2, 2, 2]),
    "whole": np.array([-1, -1, -2, -2, -3, -3]),
    "whole and within": np.array([[1, 1], [1, 1], [1, 2], [1, 2], [1, 3], [1, 3]]),
    "three levels": np.array([[-1, 1, 1], [-1, 1, 1], [-1, 1, 2], [-1, 1, 2], [-1, -2, 3], [-1, -2, 4]]),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("missing", [[0], [5], [1, 2], [0, 3], [0, 2, 4], [0, 1, 2, 3, 4]])
def test_restrict_tree__is_what_keeps_the_missing_ones_apart(name, missing):
    def every(tree, n_obs):
        if pm.count_permutations(tree, np.arange(n_obs)) == 1:
            return np.arange(n_obs)[None]
        return pm.plan_shuffling(np.arange(n_obs), n_perm=1000, seed=0, tree=tree).permutations

    tree = pm.exchange_tree(TREES[name])
    observed = np.isin(np.arange(6), missing, invert=True)
    place = np.cumsum(observed) - 1
    kept = {tuple(place[row[observed]]) for row in every(tree, 6) if observed[row[observed]].all()}
    cut = pm.restrict_tree(tree, observed)
    assert {tuple(row) for row in every(cut, observed.sum())} == kept
    assert pm.count_permutations(cut, np.arange(observed.sum())) == len(kept)
