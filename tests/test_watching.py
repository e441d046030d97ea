"""Watching a run: the status that ends by itself, groups of tasks by name, Dask's own report."""

import re
import subprocess
import sys

import pytest

from kconn import cli
from kconn.cluster import connect
from kconn.execution import run_plan
from kconn.study.workbench import prepare, writing
from tests.small_study import small_study
from tests.table_study import table_study
from tests.warm_shell import ROOT


def test_status__watch_ends_when_everything_is_there(tmp_path, capsys):
    study = table_study(tmp_path / "study", n_subject=3)
    command = [sys.executable, "-m", "kconn.cli", "run", str(study), "--workers", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        assert cli.main(["status", str(study), "--watch"]) == 0
        assert prepare(study).pending() == []
        assert running.wait(timeout=120) == 0
    shown = capsys.readouterr().out
    assert re.search(r"ingest\W+3\W+3", shown)
    assert re.search(r"test\W+1\W+1", shown)


@pytest.mark.slow
def test_run_plan__groups_of_tasks_have_names_without_labels(tmp_path):
    bench = prepare(small_study(tmp_path, contrasts={"groups": None, "mean": {"test": "one-sample"}}))
    with connect(n_workers=1) as client, writing(bench):
        run_plan(bench.plan, bench.bind, client=client, listen=lambda _: None)
        prefixes = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert {"ingest", "denoise", "connect-nodes", "connect-netmat", "permute"} <= set(prefixes)
    assert not [name for name in prefixes if "sub" in name or "run" in name]


@pytest.mark.slow
def test_run__performance_report_is_one_page_without_labels(tmp_path, capsys):
    study = table_study(tmp_path / "study", n_subject=3)
    page = tmp_path / "performance.html"
    with pytest.raises(SystemExit):
        cli.main(["run", str(study), "--performance-report"])
    capsys.readouterr()
    assert cli.main(["run", str(study), "--workers", "0", "--performance-report", str(page)]) == cli.EXIT_ERROR
    assert capsys.readouterr().err.splitlines()[0].startswith("E-ARGUMENT a performance report was asked for")
    assert cli.main(["run", str(study), "--workers", "1", "--performance-report", str(page)]) == 0
    html = page.read_text()
    assert "denoise" in html
    assert "connect-netmat" in html
    assert "sub-00" not in html
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"https?://", html)
