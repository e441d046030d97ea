"""The runs of a study into its store: ``python -m flows.ingest study.toml``."""

from __future__ import annotations

import sys
from typing import Final

from flows.declaring import AS_THE_STUDY_SAYS, Resources, study_flow
from flows.places import locate_study
from flows.shell import run_from_shell
from flows.walking import opened, walk
from kconn.study.workbench import prepare

STAGES: Final = ("ingest",)


@study_flow("kconn-ingest")
def run_ingest(study: str, resources: Resources = AS_THE_STUDY_SAYS) -> int:
    """Read every run that is not in the store yet; return how many steps were missing.

    Parameters
    ----------
    study
        The study file.
    resources
        What it may use, where that is not what the study file says.
    """
    bench = prepare(locate_study(study))
    with opened(bench, resources, command="ingest") as session:
        return walk(session, stages=STAGES)


if __name__ == "__main__":
    sys.exit(run_from_shell(run_ingest))
