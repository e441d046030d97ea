"""A study of node series with networks, families, blocks, visits and repeated sessions and runs."""

import numpy as np
import pandas as pd

NODES = "abcdefgh"
NETWORKS = dict(zip(NODES, ["DMN", "DMN", "DMN", "limbic", "limbic", "vis", "vis", "sgACC"], strict=True))
FAMILY = {
    frozenset(pair)
    for a, b in (("limbic", "DMN"), ("a", "vis"))
    for pair in ((i, j) for i in NODES for j in NODES if i != j and {a, b} <= {i, j, NETWORKS[i], NETWORKS[j]})
}
STUDY = """schema_version = 1
[study]
name = "networks"
[inputs]
layout = "tables"
root = "series"
pattern = "sub-{subject}_ses-{session}_run-{run}.tsv"
orientation = "time-by-node"
t_r = 2.0
participants = "participants.tsv"
[denoise]
confounds = "none"
[quality]
min_frames = 20
min_dof = 5
qc_fc_n_perm = 100
[nodes.all]
columns = "all"
labels = "nodes.tsv"
[connectivity]
kinds = ["corr", "amplitude"]
[families]
file = "families.tsv"
[families.edges]
sgACC-DMN = [["sgACC", "DMN"]]
[blocks]
[visits.baseline]
sessions = ["pre1", "pre2"]
[reliability.visits]
sessions = ["pre1", "pre2"]
icc = "ICC(3,1)"
[reliability.runs]
runs = ["1", "2"]
session = "post"
where = { group = ["x", "y"] }
[permutation]
n_perm = 20
seed = 3
[contrasts.change]
test = "paired"
change = ["baseline", "post"]
[contrasts.coi]
test = "two-sample"
formula = "group"
effect = "group"
change = ["baseline", "post"]
family = "coi"
"""


def networks_study(folder):
    """Write the study into a folder and return its study file; the last subject has no second baseline."""
    (folder / "series").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for subject in range(4):
        mixing = rng.normal(size=(8, 8)) + 2 * np.eye(8)
        for session in ("pre1", "pre2", "post"):
            if (subject, session) == (3, "pre2"):
                continue
            for run in (1, 2):
                values = pd.DataFrame(rng.normal(size=(60, 8)) @ mixing, columns=list(NODES))
                name = f"sub-{subject:02d}_ses-{session}_run-{run}.tsv"
                values.to_csv(folder / "series" / name, sep="\t", index=False)
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(4)], "group": ["x", "y"] * 2})
    people.to_csv(folder / "participants.tsv", sep="\t", index=False)
    nodes = pd.DataFrame({"name": list(NETWORKS), "network": list(NETWORKS.values()), "hemisphere": list("LRLRLRLR")})
    nodes.to_csv(folder / "nodes.tsv", sep="\t", index=False)
    families = [("coi", "limbic", "DMN"), ("coi", "a", "vis"), ("control", "vis", "vis")]
    table = pd.DataFrame(families, columns=["family", "first", "second"])
    table.to_csv(folder / "families.tsv", sep="\t", index=False)
    path = folder / "study.toml"
    path.write_text(STUDY)
    return path
