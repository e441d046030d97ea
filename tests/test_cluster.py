"""Where a study is computed: one switch, settings in one place, and words where it does not come up."""

import importlib.util
import shutil
import sys
from pathlib import Path

import dask
import pytest
import yaml
from distributed import LocalCluster

from kconn.cluster import connect, kubernetes, slurm
from kconn.cluster.settings import GUARDED, ONE_THREAD, SETTINGS, as_environment
from kconn.cluster.table import ClusterTable
from kconn.errors import KconnError, SchemaError
from kconn.study.file import read_study
from kconn.study.workbench import choose_cluster, prepare
from tests.small_study import small_study, write_study

DEPLOY = Path(__file__).parents[1] / "deploy"


def flat(tree, prefix=""):
    found = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        found |= flat(value, name) if isinstance(value, dict) else {name: value}
    return found


def asked(table, *, n_workers=None, address=None, kind=None, tls=None):
    return choose_cluster(table, n_workers=n_workers, address=address, kind=kind, tls=tls)


def test_settings__the_file_holds_the_same():
    shipped = yaml.safe_load((DEPLOY / "dask" / "kconn.yaml").read_text())
    assert flat(shipped) == {**SETTINGS, **GUARDED}


def test_settings__dask_knows_every_one():
    for name in {**SETTINGS, **GUARDED}:
        assert dask.config.get(name, default="unknown") != "unknown", name


def test_as_environment__is_read_back_by_dask():
    variables = as_environment({**SETTINGS, **GUARDED})
    assert flat(dask.config.collect_env(variables)) == {
        name.replace("-", "_"): value for name, value in {**SETTINGS, **GUARDED}.items()
    }


def test_cluster_table__changes_no_key_and_no_printed_parameter(tmp_path):
    path = small_study(tmp_path)
    before = {step.address: step.key for step in prepare(path).plan.steps}
    write_study(tmp_path, cluster={"kind": "slurm", "queue": "long", "max_workers": 40, "memory": "16GiB"})
    bench = prepare(path)
    assert bench.study.cluster.queue == "long"
    assert {step.address: step.key for step in bench.plan.steps} == before
    assert "cluster" not in bench.study.model_dump()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "address"}, "needs 'address'"),
        ({"kind": "kubernetes"}, "needs 'image'"),
        ({"workers": 2, "max_workers": 4}, "not both"),
        ({"min_workers": 5, "max_workers": 4}, "below min_workers"),
        ({"kind": "slurm", "workers": 0}, "computes in this process"),
        ({"memory": "lots"}, "cluster.memory"),
        ({"walltime": "4h"}, "cluster.walltime"),
        ({"queue": "a\nb"}, "cluster.queue"),
        ({"namespace": "No_Name"}, "cluster.namespace"),
    ],
)
def test_cluster_table__refuses(tmp_path, table, words):
    with pytest.raises(KconnError, match=words) as caught:
        read_study(write_study(tmp_path, cluster=table))
    assert caught.value.code == "E-STUDY-VALUE"


def test_choose_cluster__what_is_asked_for_goes_over_the_file():
    table = ClusterTable(kind="slurm", max_workers=9, queue="long")
    assert asked(table) == table
    chosen = asked(table, n_workers=3)
    assert (chosen.kind, chosen.workers, chosen.max_workers, chosen.queue) == ("slurm", 3, None, "long")
    assert asked(table, kind="local").kind == "local"
    chosen = asked(table, address="tls://there:1", tls="certs")
    assert (chosen.kind, chosen.address, chosen.tls) == ("address", "tls://there:1", str(Path("certs").resolve()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "slurm", "address": "tls://there:1"}, "starts one"),
        ({"kind": "kubernetes"}, "needs 'image'"),
        ({"kind": "slurm", "n_workers": 0}, "in this process"),
        ({"n_workers": -1}, "greater than or equal to 0"),
    ],
)
def test_choose_cluster__refuses_what_does_not_go_together(options, words):
    with pytest.raises(SchemaError, match=words) as caught:
        asked(ClusterTable(), **options)
    assert caught.value.code == "E-ARGUMENT"


def test_connect__local_workers_come_and_go_with_the_work():
    with connect(ClusterTable(max_workers=2, memory="1GiB")) as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        assert all(worker["memory_limit"] == 2**30 for worker in client.scheduler_info()["workers"].values())
        assert client.dashboard_link.startswith("http://127.0.0.1:")


def test_connect__local_workers_do_not_import_the_main_module(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", importlib.util.find_spec("flows.study"))
    with connect(n_workers=1) as client:
        assert list(client.run(lambda: sorted({"flows", "prefect"} & set(sys.modules))).values()) == [[]]
    assert sys.modules["__main__"] is main


def test_connect__says_when_no_worker_comes_up():
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, protocol="tcp://", host="127.0.0.1"
        ) as cluster,
        pytest.raises(KconnError, match="no worker came up within") as caught,
        connect(ClusterTable(kind="address", address=cluster.scheduler_address, start_minutes=0.01)),
    ):
        pass
    assert caught.value.code == "E-WORKER"


@pytest.mark.parametrize(
    ("table", "library"),
    [
        (ClusterTable(kind="slurm", insecure=True), "dask_jobqueue.slurm"),
        (ClusterTable(kind="kubernetes", image="kconn:1", insecure=True), "kr8s"),
    ],
)
def test_connect__names_the_extra_that_is_not_installed(tmp_path, monkeypatch, table, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SchemaError, match="is not installed") as caught, connect(table, folder=tmp_path):
        pass
    assert caught.value.code == "E-ARGUMENT"
    assert f"kconn[{table.kind}]" in caught.value.fix


def test_connect__says_that_jobs_cannot_be_submitted_here(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(KconnError, match="no sbatch") as caught, connect(ClusterTable(kind="slurm"), folder=tmp_path):
        pass
    assert caught.value.code == "E-WORKER"
    assert list(tmp_path.iterdir()) == []  # the keys that were made for the run are gone


def test_slurm_options__hold_the_settings_and_end_before_the_job(tmp_path):
    table = ClusterTable(kind="slurm", queue="long", memory="16 GiB", walltime="1-02:00:00", prologue=["module load x"])
    options = slurm.slurm_options(table, security=None, folder=tmp_path)
    assert options["memory"] == "16GiB"
    assert "account" not in options  # the site's own configuration may say it
    assert options["worker_extra_args"][:2] == ["--lifetime", f"{26 * 3600 - 300}s"]
    assert options["job_script_prologue"][-1] == "module load x"
    assert "export OPENBLAS_NUM_THREADS=1" in options["job_script_prologue"]
    assert "export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=30s" in options["job_script_prologue"]


@pytest.mark.parametrize(("walltime", "seconds"), [("00:10:00", 480), ("00:30:00", 1500), ("2-00:00:00", 172500)])
def test_slurm_options__lifetime(tmp_path, walltime, seconds):
    options = slurm.slurm_options(ClusterTable(walltime=walltime), security=None, folder=tmp_path)
    assert options["worker_extra_args"][1] == f"{seconds}s"


def test_describe_objects__start_with_commands_that_exist_and_tls():
    table = ClusterTable(kind="kubernetes", image="kconn:1", max_workers=20, min_workers=2, memory="12GiB")
    cluster, autoscaler = kubernetes.describe_objects("a", table)
    assert autoscaler["spec"] == {"cluster": "a", "minimum": 2, "maximum": 20}
    assert cluster["spec"]["worker"]["replicas"] == 2
    for role, prefix in {"scheduler": ["dask", "scheduler"], "worker": ["dask", "worker"]}.items():
        pod = cluster["spec"][role]["spec"]
        (container,) = pod["containers"]
        assert container["args"][:2] == prefix
        assert container["args"][-6:-4] == ["--tls-ca-file", "/etc/kconn/tls/ca.pem"]
        assert pod["volumes"][-1]["secret"]["secretName"] == f"kconn-tls-{role}"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert variables.items() >= {**ONE_THREAD, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}.items()
    worker = cluster["spec"]["worker"]["spec"]["containers"][0]
    assert worker["args"][2] == "tls://a-scheduler.kconn:8786"
    assert worker["resources"]["limits"]["memory"] == "12Gi"
    assert worker["args"][worker["args"].index("--memory-limit") + 1] == "12GiB"


def test_describe_objects__insecure_is_said_everywhere():
    (cluster,) = kubernetes.describe_objects("a", ClusterTable(kind="kubernetes", image="kconn:1", insecure=True))
    for role in ("scheduler", "worker"):
        pod = cluster["spec"][role]["spec"]
        assert not any("tls" in argument for argument in pod["containers"][0]["args"])
        assert "tls" not in {volume["name"] for volume in pod["volumes"]}
