"""A study of node series that is computed at once, and that can grow."""

import json

import numpy as np

from kconn.run_log import logs_folder

CONTRAST = """[contrasts.mean]
test = "one-sample"
"""
STUDY = """schema_version = 1
[study]
name = "tables"
[inputs]
layout = "tables"
root = "series"
pattern = "sub-{{subject}}.tsv"
orientation = "time-by-node"
t_r = {t_r}
participants = "participants.tsv"
[denoise]
confounds = "none"
[quality]
min_frames = 20
min_dof = 5
qc_fc_n_perm = 100
[nodes.all]
columns = "all"
[permutation]
n_perm = {n_perm}
seed = 3
{contrast}"""


def table_study(folder, *, n_subject):
    """Write a study and return its study file."""
    (folder / "series").mkdir(parents=True)
    (folder / "participants.tsv").write_text("participant_id\n")
    for i in range(n_subject):
        add_subject(folder, f"{i:03d}")
    return write_study_file(folder)


def write_study_file(folder, *, t_r=2.0, n_perm=20, contrast=CONTRAST):
    """Write the study file of ``series/sub-*.tsv`` and return it."""
    study = folder / "study.toml"
    study.write_text(STUDY.format(t_r=t_r, n_perm=n_perm, contrast=contrast))
    return study


def add_subject(folder, label, *, row=True):
    """Write the series of one more subject, and its row in the participants table; return the file of the series."""
    values = np.random.default_rng(int(label)).standard_normal((60, 4))
    lines = ["\t".join("abcd"), *("\t".join(f"{x:.5f}" for x in frame) for frame in values)]
    path = folder / "series" / f"sub-{label}.tsv"
    path.write_text("\n".join(lines) + "\n")
    if row:
        with (folder / "participants.tsv").open("a") as file:
            file.write(f"sub-{label}\n")
    return path


def last_log(study):
    """Return the lines of the log of the last run of a study."""
    path = max(logs_folder(study.parent / ".study.zarr.work").iterdir())
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(study, outcome="made"):
    """Return (stage, where) of what the last run of a study did."""
    return [
        (line["stage"], line["where"])
        for line in last_log(study)
        if line["event"] == "step" and line["outcome"] == outcome
    ]
