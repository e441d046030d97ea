"""The quality parts of the report: carpets, the flow, motion and QC-FC, each against what it was drawn from."""

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from kconn.clean.quality import estimate_carpet, estimate_courses
from kconn.clean.quality_cohort import MOTION_MEASURES, compare_motion, estimate_qc_fc
from kconn.exclusions import Exclusion, FlowStage
from kconn.execution import run_plan
from kconn.report.carpet import N_COLUMN, N_ROW, draw_carpet
from kconn.report.html import render_report
from kconn.report.quality import exclusion_table, flow_boxes, motion_tables, plot_qc_fc
from kconn.report.study import gather_report, worst_first
from kconn.study.workbench import prepare, writing
from kconn.testing import simulate_run
from tests.table_study import table_study


@pytest.fixture(scope="module")
def run():
    return estimate_carpet(estimate_courses(simulate_run(n_time=90, motion_level=3, seed=2)))


def picture(svg):
    (address,) = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    return Image.open(BytesIO(b64decode(address)))


def test_draw_carpet__shows_the_carpet_frame_by_frame(run):
    image = picture(draw_carpet(run, label="sub-01", fd_threshold=0.5))
    assert image.size == (90, N_ROW)
    grey = np.asarray(image.convert("L"), dtype=float)
    shown = run["carpet"].to_numpy()[np.arange(N_ROW) * 200 // N_ROW] / 40
    expected = np.rint((np.clip(shown / 1.5, -1, 1) + 1) / 2 * 14) * 255 / 14
    np.testing.assert_allclose(grey, expected, atol=1)


def test_draw_carpet__dropped_frames_are_see_through_and_marked(run):
    dropped = run["carpet"].copy()
    dropped[:, 10:13] = -128
    kept = np.ones(90, dtype=bool)
    kept[10:13] = False
    svg = draw_carpet(run.assign(carpet=dropped, sample_mask=("time", kept)), label="x", fd_threshold=None)
    alpha = np.asarray(picture(svg).convert("RGBA"))[..., 3]
    assert np.flatnonzero((alpha == 0).all(axis=0)).tolist() == [10, 11, 12]
    assert svg.count("<rect") == 1
    assert "dropped: 3" in svg


def test_draw_carpet__long_runs_stay_small(run):
    names = ["carpet", "std_dvars", "framewise_displacement", "sample_mask"]
    long = run[names].isel(time=np.tile(np.arange(90), 14))
    svg = draw_carpet(long.assign(carpet_denoised=long["carpet"]), label="x", fd_threshold=0.5)
    assert re.findall(r'width="\d+" height="84"', svg)
    assert len(svg) < 40_000
    assert N_COLUMN < 14 * 90


def test_draw_carpet__a_label_is_text(run):
    assert "<script" not in draw_carpet(run, label="<script>'\"", fd_threshold=None)


def test_flow_boxes__say_how_many_and_why():
    flow = [
        FlowStage(name="found", n_subject=3, n_session=4, n_run=5),
        FlowStage(name="kept", n_subject=1, n_session=1, n_run=1, lost=((4, "run", "too few frames"),)),
    ]
    boxes, tests = flow_boxes(flow, [])
    assert [box.left for box in boxes] == ["3 subjects, 4 sessions, 5 runs", "1 subject, 1 session, 1 run"]
    assert boxes[1].lost == ("4 runs: too few frames",)
    assert tests == []


def test_exclusion_table__gathers_those_of_one_reason_and_drops_codes():
    same = {"step": "run", "session": "1", "run": "1", "reason": "E-DF 3 left"}
    table = exclusion_table([Exclusion(subject="01", **same), Exclusion(subject="02", **same)])
    assert table.rows == (("run", "everything", "3 left", "2", "sub-01/ses-1/run-1, sub-02/ses-1/run-1"),)


@pytest.fixture(scope="module")
def motion():
    rng = np.random.default_rng(0)
    subjects = [f"{i:02d}" for i in range(12)]
    ds = xr.Dataset(
        {name: ("observation", rng.gamma(3, 0.05, 24)) for name in MOTION_MEASURES},
        coords={"subject": ("observation", subjects * 2), "session": ("observation", ["pre"] * 12 + ["post"] * 12)},
    )
    groups = {"group": {subject: "ab"[i % 2] for i, subject in enumerate(subjects)}}
    return compare_motion(ds, factors=groups, changes=[("pre", "post")], n_perm=200, seed=1)


def test_motion_tables__print_every_comparison(motion):
    short, full = motion_tables(motion)
    assert [row[0] for row in short.rows] == [
        "group: b against a, session post",
        "group: b against a, session pre",
        "session post against pre",
        "session post against pre, a alone",
        "session post against pre, b alone",
    ]
    assert len(full.rows) == 5 * 7
    assert short.rows[0][4] == f"{motion['stat'].to_numpy()[0, 0]:.2f}".replace("-", "\N{MINUS SIGN}")
    assert motion_tables(None) is None


def test_motion_tables__numbers_of_a_column_with_a_gap_are_whole(motion):
    coded = {"a": "0.0", "b": "1.0"}
    changed = {
        name: (("comparison",), [coded.get(v, v) for v in motion[name].to_numpy()]) for name in ("first", "second")
    }
    short, _ = motion_tables(motion.assign_coords(changed))
    assert short.rows[0][0] == "group: 1 against 0, session post"


def test_plot_qc_fc__draws_before_and_after_and_by_length():
    rng = np.random.default_rng(0)
    i, j = np.triu_indices(7, 1)
    nodes = np.array([f"n{k}" for k in range(7)])
    cohort = xr.Dataset(
        {"netmat": (("observation", "edge"), rng.normal(size=(20, 21))), "mean_fd": ("observation", rng.random(20))},
        coords={"observation": np.arange(20), "node_i": ("edge", nodes[i]), "node_j": ("edge", nodes[j])},
    )
    places = xr.DataArray(rng.normal(size=(7, 3)), dims=("node", "axis"), coords={"node": nodes})
    found = estimate_qc_fc(cohort, positions=places, n_perm=20)
    found["qc_fc_before"] = found["qc_fc"]
    left, right = plot_qc_fc(found).axes
    assert len(left.patches) == 2
    assert left.patches[0].get_data()[0].sum() == 21
    assert len(right.lines) == 3
    assert np.mean(right.lines[0].get_ydata()) == pytest.approx(found["qc_fc"].mean().item(), abs=0.1)


def test_worst_first__left_out_then_censored_then_moving():
    rows = pd.DataFrame(
        [
            ("calm", "", 0.1, 0.1, 1.0),
            ("moves", "", 0.1, 0.3, 1.0),
            ("unknown", "", 0.1, np.nan, 2.0),
            ("out", "too little", 0.0, 0.0, 1.0),
            ("censored", "", 0.4, 0.2, 1.0),
        ],
        columns=["path", "excluded", "share_censored", "mean_fd", "mean_std_dvars"],
    )

    assert worst_first(rows) == ["out", "censored", "moves", "calm", "unknown"]


def test_write_study_report__of_many_runs_shows_the_worst_as_pictures(tmp_path, monkeypatch):
    bench = prepare(table_study(tmp_path, n_subject=4))
    with writing(bench):
        run_plan(bench.plan, bench.bind, client=None, listen=lambda _: None)
    assert len(list(gather_report(bench).carpets)) == 4
    monkeypatch.setattr("kconn.report.study.N_CARPET", 3)
    page = render_report(gather_report(bench))
    assert "The 3 worst runs as pictures, before and after denoising" in page
    assert page.count("Carpet plot of") == 3
