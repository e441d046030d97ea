"""The whole study as a Prefect flow: ``python -m flows.study study.toml``."""

from __future__ import annotations

import sys

from flows.declaring import AS_THE_STUDY_SAYS, Resources, study_flow
from flows.places import locate_study
from flows.shell import run_from_shell
from flows.walking import finish, opened, walk
from kconn.study.workbench import prepare


@study_flow("kconn-study")
def run_study(study: str, resources: Resources = AS_THE_STUDY_SAYS) -> str:
    """Run what is missing of a study, write its report and return the digest of the store.

    Parameters
    ----------
    study
        The study file.
    resources
        What it may use, where that is not what the study file says.
    """
    bench = prepare(locate_study(study))
    with opened(bench, resources, command="study") as session:
        walk(session)
        return finish(session)


if __name__ == "__main__":
    sys.exit(run_from_shell(run_study))
