"""The plan: which steps there are, when their keys change, and what they will cost."""

import json
import shutil
from collections import Counter

import pytest

from kconn.io import store
from kconn.stages import run_job
from kconn.study.plan import make_plan
from kconn.study.workbench import Workbench, prepare, writing
from kconn.summary import plan_as_json
from tests.small_study import ATLAS, run_file, small_study, write_study

GROUPS = {"test": "two-sample", "formula": "group", "effect": "group"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    small_study(folder)
    return folder


def keys(folder, **changes):
    """Return address -> key of the plan of a study file with changes."""
    return {str(step.address): step.key for step in prepare(write_study(folder, **changes)).plan.steps}


def changed(before, after):
    """Count the stages whose keys differ, by stage."""
    assert before.keys() == after.keys()
    return dict(Counter(address.split(":")[1] for address in before if before[address] != after[address]))


RUN = {"ingest": 4, "denoise": 4, "nodes": 4, "netmat": 4}
EVERY = RUN | dict.fromkeys(("quality", "motion", "coverage", "cohort", "qcfc", "test"), 1)
BEFORE_NODES = ("ingest", "denoise", "quality", "motion")


def without(*stages):
    return {stage: n for stage, n in EVERY.items() if stage not in stages}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"study": {"name": "another", "report": "other.html"}}, {}),
        ({"inputs": {"mask": "none"}}, EVERY),
        ({"inputs": {"t_r": 0.8}}, EVERY),
        ({"denoise": {"low_pass": 0.15}}, without("ingest")),
        ({"quality": {"min_frames": 30}}, without("ingest")),
        ({"nodes": {"sim": {"atlas": ATLAS, "min_coverage": 0.4}}}, without(*BEFORE_NODES)),
        ({"connectivity": {"rho": 0.7}}, {}),
        ({"permutation": {"seed": 4}}, {"motion": 1, "qcfc": 1, "test": 1}),
        ({"permutation": {"n_perm": 22}}, {"motion": 1, "test": 1}),
        ({"quality": {"min_atlas_coverage": 0.4}}, without(*BEFORE_NODES)),
        ({"quality": {"min_session_frames": 40}}, without("ingest", "denoise", "nodes", "netmat", "coverage")),
        ({"quality": {"qc_fc_n_perm": 200}}, {"qcfc": 1}),
        ({"permutation": {"alternative": "less"}}, {"test": 1}),
        ({"contrasts": {"groups": {**GROUPS, "formula": "group + 1"}}}, {"test": 1}),
        ({"contrasts": {"groups": {**GROUPS, "alternative": "two-sided"}}}, {}),
        ({"permutation": {"max_mem": 10**9}}, {}),
        ({"permutation": {"threshold": 2.0, "statistic": "nbs"}}, {"test": 1}),
        ({"contrasts": {"groups": {**GROUPS, "exchangeability_blocks": "sex", "exchange": "within"}}}, {"test": 1}),
        ({"contrasts": {"groups": {**GROUPS, "fdr": "bky", "dtype": "float32"}}}, {"test": 1}),
    ],
)
def test_make_plan__a_parameter_changes_its_stage_and_what_follows(folder, changes, expected):
    assert changed(keys(folder), keys(folder, **changes)) == expected


def test_make_plan__one_changed_byte_changes_its_run_and_the_cohort(folder, tmp_path):
    before = keys(folder)
    shutil.copytree(folder / "derivatives", tmp_path / "derivatives")
    assert keys(tmp_path) == before  # neither place nor time is part of a key
    table = run_file(tmp_path, "03", "desc-confounds_timeseries.tsv")
    table.write_text(table.read_text().replace("e-05", "e-06", 1))
    after = keys(tmp_path)
    assert changed(before, after) == dict.fromkeys(EVERY, 1)
    assert {address.split("/")[0] for address in before if before[address] != after[address]} >= {"sub-03"}
    atlas = tmp_path / ATLAS
    atlas.write_bytes(atlas.read_bytes()[:4] + b"\1\0\0\0" + atlas.read_bytes()[8:])  # the time in the gzip header
    assert changed(after, keys(tmp_path)) == without(*BEFORE_NODES)
    people = tmp_path / "derivatives/participants.tsv"
    people.write_text(people.read_text() + "\n")
    assert changed(before, after | {a: k for a, k in keys(tmp_path).items() if a.endswith(":test")})["test"] == 1


def test_make_plan__remembers_digests_until_a_file_changes_and_rehash_reads_all(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    study = write_study(tmp_path / "copy")
    first = prepare(study).plan
    path = run_file(tmp_path / "copy", "01", "desc-confounds_timeseries.tsv")
    status = path.stat()
    text = path.read_text()
    path.write_text(text[:-2] + ("1" if text[-2] != "1" else "2") + "\n")
    assert path.stat().st_size == status.st_size
    assert prepare(study).plan.steps[0].key != first.steps[0].key
    path.write_text(text)
    assert [step.key for step in prepare(study, rehash=True).plan.steps] == [step.key for step in first.steps]


def test_make_plan__other_code_changes_every_key(folder, monkeypatch):
    before = keys(folder)
    monkeypatch.setattr("kconn.study.plan.code_version", lambda: "0+other")
    assert changed(before, keys(folder)) == EVERY


def test_make_plan__each_step_stands_after_those_it_reads(folder):
    bench = prepare(
        write_study(
            folder,
            nodes={"balls": {"spheres": [["a", 0, 0, 0], ["b", 40, 0, 0]], "radius_mm": 25}},
            connectivity={"kinds": ["corr", "ridgep"]},
            contrasts={"mean": {"test": "one-sample"}},
        )
    )
    seen = set()
    for step in bench.plan.steps:
        assert {up.address for up in step.upstream} <= seen
        seen.add(step.address)
    assert len(seen) == len(bench.plan.steps)
    stages = Counter(step.stage for step in bench.plan.steps)
    of_runs = {"ingest": 4, "denoise": 4, "nodes": 8, "netmat": 16}
    assert stages == {**of_runs, "quality": 1, "motion": 1, "coverage": 2, "cohort": 4, "qcfc": 4, "test": 8}
    assert [len(steps) for steps in bench.plan.runs().values()] == [8] * 4
    assert len(bench.plan.cohort()) == 20
    json.dumps(plan_as_json(bench))


def test_make_plan__estimates_bound_what_is_written(folder, tmp_path):
    shutil.copytree(folder / "derivatives", tmp_path / "derivatives")
    bench = prepare(write_study(tmp_path))
    steps = bench.plan.steps[:2]
    assert [step.stage for step in steps] == ["ingest", "denoise"]
    with writing(bench):
        for step in steps:
            run_job(bench.bind(step))
    for step in steps:
        files = store.read_seal(bench.study.store, step.address)["files"]
        name = "bold" if step.stage == "ingest" else "denoised"
        written = sum(size for path, (size, _) in files.items() if path.startswith(f"{name}/c/"))
        assert 0.2 * step.estimate.bytes_written < written < 1.1 * step.estimate.bytes_written
        assert step.estimate.memory > 2 * step.estimate.bytes_written


def test_make_plan__is_made_of_the_survey(folder):
    bench = prepare(write_study(folder))
    assert isinstance(bench, Workbench)
    assert make_plan(bench.study, bench.survey).steps == bench.plan.steps
