"""Where studies lie and reports are read: named by the environment, so that Prefect's database holds no path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kconn.errors import StudyFileError

#: Folder that the study files of deployments are named relative to. The worker's environment says it.
STUDIES: Final = "KCONN_STUDIES"
#: Address under which that folder can be read in a browser, if it can.
REPORTS_URL: Final = "KCONN_REPORTS_URL"


def locate_study(name: str) -> Path:
    """Return the path of a study file; where `STUDIES` is set, names lead to no other place.

    Raises
    ------
    StudyFileError
        ``E-STUDY-READ``.
    """
    folder = os.environ.get(STUDIES)
    if folder is None:
        return Path(name)
    path = Path(folder, name)
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise StudyFileError(
            "E-STUDY-READ",
            f"the study file {name!r} lies outside the folder of studies",
            rule=f"{STUDIES} is set: study files are named relative to that folder",
            fix="name a file in it, such as trial/study.toml",
        )
    return path


def link_report(report: Path) -> str | None:
    """Return the address of a report, or None where none is known."""
    url, folder = os.environ.get(REPORTS_URL), os.environ.get(STUDIES, ".")
    inside = report.resolve()
    if url is None or not inside.is_relative_to(Path(folder).resolve()):
        return None
    return f"{url.rstrip('/')}/{inside.relative_to(Path(folder).resolve()).as_posix()}"
