"""From runs to the netmats of the cohort: ``python -m flows.connectivity study.toml``."""

from __future__ import annotations

import sys
from typing import Final

from flows import inference, ingest
from flows.declaring import AS_THE_STUDY_SAYS, Resources, study_flow
from flows.places import locate_study
from flows.shell import run_from_shell
from flows.walking import opened, walk
from kconn.study.plan import COHORT_STAGES, RUN_STAGES
from kconn.study.workbench import prepare

STAGES: Final = tuple(
    stage for stage in (*RUN_STAGES, *COHORT_STAGES) if stage not in {*ingest.STAGES, *inference.STAGES}
)


@study_flow("kconn-connectivity")
def run_connectivity(study: str, resources: Resources = AS_THE_STUDY_SAYS) -> int:
    """Denoise, connect and gather what is not there yet; return how many steps were missing.

    Parameters
    ----------
    study
        The study file.
    resources
        What it may use, where that is not what the study file says.
    """
    bench = prepare(locate_study(study))
    with opened(bench, resources, command="connectivity") as session:
        return walk(session, stages=STAGES)


if __name__ == "__main__":
    sys.exit(run_from_shell(run_connectivity))
