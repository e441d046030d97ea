"""The DaskCluster of deploy/kubernetes, as a run makes it; ``python -m tests.kubernetes_manifests`` writes it anew."""

from pathlib import Path

import yaml

from kconn.cluster.kubernetes import describe_objects
from kconn.cluster.table import ClusterTable

PATH = Path(__file__).parents[1] / "deploy" / "kubernetes" / "base" / "daskcluster.yaml"
HEAD = """\
# A standing Dask cluster: kind = "address", address = "tls://kconn-scheduler.kconn:8786".
# With kind = "kubernetes" a run makes one like it for itself.
# Printed from kconn/cluster/kubernetes.py by `python -m tests.kubernetes_manifests`.
"""


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice: Kubernetes' readers differ over anchors."""

    def ignore_aliases(self, data):  # noqa: ARG002 - the signature of PyYAML
        return True


def render():
    """Return the manifest as text."""
    table = ClusterTable(kind="kubernetes", image="kconn", min_workers=1, max_workers=20)
    objects = describe_objects("kconn", table)
    return HEAD + yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=120)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
