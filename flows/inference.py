"""The tests of a study and its report: ``python -m flows.inference study.toml``."""

from __future__ import annotations

import sys
from typing import Final

from flows.declaring import AS_THE_STUDY_SAYS, Resources, study_flow
from flows.places import locate_study
from flows.shell import run_from_shell
from flows.walking import finish, opened, walk
from kconn.study.workbench import prepare

STAGES: Final = ("test", "feature-test", "map-test", "map-correction")


@study_flow("kconn-inference")
def run_inference(study: str, resources: Resources = AS_THE_STUDY_SAYS) -> str:
    """Test the contrasts that were not tested yet, write the report and return the digest of the store.

    Parameters
    ----------
    study
        The study file.
    resources
        What it may use, where that is not what the study file says.
    """
    bench = prepare(locate_study(study))
    with opened(bench, resources, command="inference") as session:
        walk(session, stages=STAGES)
        return finish(session)


if __name__ == "__main__":
    sys.exit(run_from_shell(run_inference))
