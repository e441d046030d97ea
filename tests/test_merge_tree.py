"""The tree of merges: every run once, in any order, and little changes when one comes."""

import math

from hypothesis import given
from hypothesis import strategies as st

from kconn.connect.merge_tree import plan_merges

NAMES = st.sets(st.text(alphabet="abc/-0123456789", max_size=12).map("sub-{}".format), min_size=2, max_size=60)


def runs_below(merges):
    found = {}
    for merge in merges:
        found[merge.name] = [run for part in merge.parts for run in found.get(part, [part])]
    return found


@given(NAMES)
def test_plan_merges__joins_every_run_once(names):
    merges = plan_merges(names)
    assert merges[-1].name == "all"
    assert sorted(runs_below(merges)["all"]) == sorted(names)
    assert len({merge.name for merge in merges}) == len(merges)
    assert all(2 <= len(merge.parts) <= 4 for merge in merges)


@given(NAMES, st.randoms())
def test_plan_merges__does_not_depend_on_order(names, random):
    shuffled = sorted(names)
    random.shuffle(shuffled)
    assert plan_merges(shuffled) == plan_merges(names)


def test_plan_merges__a_new_run_changes_one_path():
    names = [f"sub-{i:03d}/ses-1/run-1" for i in range(200)]
    before, after = runs_below(plan_merges(names)), runs_below(plan_merges([*names, "sub-200/ses-1/run-1"]))
    changed = [name for name, below in after.items() if before.get(name) != below]
    assert len(changed) <= 3 * math.ceil(math.log(200, 4))
    assert all("sub-200/ses-1/run-1" in after[name] for name in changed)


def test_plan_merges__nothing_to_merge():
    assert plan_merges(["sub-01/ses-1/run-1"]) == []
    assert plan_merges([]) == []
