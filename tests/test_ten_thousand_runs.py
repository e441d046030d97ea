"""Ten thousand runs of node series, of the size that UK Biobank hands out, through the scheduler in bounded memory."""

import json
import sys
import time
from datetime import datetime

import numpy as np
import pytest

from kconn.io import cubes
from kconn.io.store import Address
from tests.held_memory import held_while_running
from tests.table_study import last_log, steps_of, write_study_file

N_RUN, N_NODE, N_TIME, T_R = 10_000, 55, 490, 0.735
#: Correlation that the drug adds between the first two nodes.
PLANTED = 0.1
#: Bytes that a worker may grow by after the first tenth of the runs.
GROWTH = 150e6

CONTRAST = """[contrasts.group]
test = "two-sample"
formula = "group"
effect = "group"
levels = ["placebo", "drug"]
"""


def write_study(folder):
    """Write the series of all subjects, every other one with the drug, and return the study file."""
    (folder / "series").mkdir(parents=True)
    people = ["participant_id\tgroup"]
    header = "\t".join(f"n{i:02d}" for i in range(N_NODE))
    for i in range(N_RUN):
        is_drug = bool(i % 2)
        noise = np.random.default_rng(i).standard_normal((N_TIME, N_NODE))
        noise[1:] += 0.5 * noise[:-1]
        noise[:, 1] += PLANTED * is_drug * noise[:, 0]
        rows = ("\t".join(map(str, frame)) for frame in np.rint(1000 * noise).astype(int).tolist())
        (folder / "series" / f"sub-{i:05d}.tsv").write_text("\n".join([header, *rows]) + "\n")
        people.append(f"sub-{i:05d}\t{'drug' if is_drug else 'placebo'}")
    (folder / "participants.tsv").write_text("\n".join(people) + "\n")
    return write_study_file(folder, t_r=T_R, n_perm=1000, contrast=CONTRAST)


def end_of_runs(study):
    """Return when the last step of a run was done, in seconds since 1970."""
    steps = (line for line in last_log(study) if line["event"] == "step" and line["where"].startswith("sub-"))
    return max(datetime.fromisoformat(line["time"]).timestamp() for line in steps)


@pytest.mark.hours
@pytest.mark.timeout(4 * 3600)
def test_run__of_ten_thousand_runs_in_bounded_memory(tmp_path, capsys):
    study = write_study(tmp_path)
    started = time.monotonic()
    seen = held_while_running(study, every=1.0)
    hours = (time.monotonic() - started) / 3600
    assert len(steps_of(study)) == 4 * N_RUN + 6
    ended = end_of_runs(study)
    workers = [max(held.workers) for held in seen if len(held.workers) > 1 and held.at < ended]
    early, highest = max(workers[: len(workers) // 10]), max(workers)
    found = {
        "runs": N_RUN,
        "hours": round(hours, 2),
        "MB of the command": round(max(held.command for held in seen) / 1e6),
        "MB of a worker in the first tenth of the runs, and in all": [round(early / 1e6), round(highest / 1e6)],
        "MB of a worker in the tests": round(
            max(max(held.workers, default=0) for held in seen if held.at > ended) / 1e6
        ),
        "MB of the report": round((tmp_path / "report.html").stat().st_size / 1e6, 1),
    }
    with capsys.disabled():
        sys.stdout.write(json.dumps(found) + "\n")
    assert highest < early + GROWTH
    result = cubes.open_group(
        tmp_path / "study.zarr", Address(path="contrasts/all/corr/group", step="test"), ("p_fwe", "node_i", "node_j")
    )
    found_edges = result.isel(edge=np.flatnonzero(result["p_fwe"].to_numpy() < 0.05))
    ends = zip(found_edges["node_i"].to_numpy(), found_edges["node_j"].to_numpy(), strict=True)
    assert ("n00", "n01") in set(ends)
