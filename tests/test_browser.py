"""What a person sees who watches a run: Dask's dashboard and Prefect's pages, in a browser."""

import subprocess
import sys

import pytest

from kconn.study.workbench import prepare
from tests.browser import Browser
from tests.prefect_server import Database, PrefectServer, kill_tree, wait_until
from tests.table_study import table_study

#: Every model of a page of Bokeh, with the data that its figures are drawn from.
DRAWN = "window.Bokeh ? JSON.stringify(Bokeh.documents.map(one => one.to_json())) : ''"
GROUPS = ("ingest", "denoise", "connect-nodes", "connect-netmat", "permute")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pages__show_the_groups_of_tasks_and_no_label_while_a_study_runs(tmp_path):
    study = table_study(tmp_path / "studies" / "trial", n_subject=30)
    study.write_text(study.read_text().replace("n_perm = 20", "n_perm = 50000"))
    with (
        Database("sqlite") as database,
        PrefectServer(tmp_path, database, pages=True) as server,
        Browser() as browser,
    ):
        command = [sys.executable, "-m", "flows.study", str(study), "--workers", "2"]
        environment = {name: value for name, value in server.environment.items() if name != "KCONN_STUDIES"}
        with (tmp_path / "flow.log").open("w") as log:
            flow = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: server.artifacts("dask-dashboard"), 180)
            drawn, runs = browser.open(_link(server)), browser.open(f"{server.pages}/runs")
            seen = set()

            def looked():
                shown = drawn.evaluate(DRAWN) or ""
                assert "sub-0" not in shown
                seen.update(name for name in GROUPS if f'"{name}"' in shown)
                return flow.poll() is not None or len(seen) == len(GROUPS)

            wait_until(looked, 300)
            wait_until(lambda: "kconn-study" in runs.text(), 60)
            assert flow.wait(timeout=300) == 0, (tmp_path / "flow.log").read_text()
            drawn.close()
            runs.close()
            (run,) = server.runs()
            page = browser.open(f"{server.pages}/runs/flow-run/{run['id']}")
            wait_until(lambda: run["name"] in page.text() and "Completed" in page.text(), 60)
            page.close()
        finally:
            kill_tree(flow)
    assert seen == set(GROUPS)
    assert prepare(study).pending() == []


def _link(server):
    """Return where the artifact of the flow leads."""
    (artifact,) = server.artifacts("dask-dashboard")
    return artifact["data"].split("(")[1].split(")")[0]
