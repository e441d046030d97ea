"""A log of every run of a study, in the work folder: what was done, when, and with which outcome, by run id.

One JSON object per line. Runs are named by their labels, errors by their codes: no text of an input file, no path, no
host and no user gets into it.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from kconn.errors import KconnError
from kconn.execution import Event
from kconn.versions import code_version

#: Logs that are kept; older ones go when a new one begins.
_KEPT: Final = 100


class RunLog:
    """The log of one run; safe to write from several threads."""

    def __init__(self, file: IO[str], *, run_id: str, name: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.run_id = run_id
        self.name = name

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Add one line."""
        line = {"time": _now().isoformat(timespec="milliseconds"), "run_id": self.run_id, "event": event, **fields}
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def listen(self, event: Event) -> None:
        """Add a step that ended; of an error, its code."""
        code = event.detail.split(" ", 1)[0]
        fields = {"stage": event.stage, "where": event.where, "outcome": event.outcome}
        self.write("step", {**fields, "seconds": round(event.seconds, 3), **({"code": code} if code else {})})


@contextmanager
def keep_log(work: Path, *, command: str, run_id: str | None = None) -> Iterator[RunLog]:
    """Open the log of a run and close it with how the run ended.

    Parameters
    ----------
    work
        `Study.work`; the log goes into a folder of logs in it.
    command
        What is run.
    run_id
        The id, where something else has given it one.
    """
    run_id = run_id or uuid.uuid4().hex[:12]
    folder = logs_folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.jsonl"))[: 1 - _KEPT]:
        old.unlink(missing_ok=True)
    path = folder / f"{_now():%Y%m%dT%H%M%S.%f}-{run_id}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        log = RunLog(file, run_id=run_id, name=path.name)
        log.write("start", {"command": command, "kconn": code_version()})
        try:
            yield log
        except KconnError as error:
            log.write("end", {"outcome": "failed", "code": error.code, "where": error.where})
            raise
        except BaseException as error:
            log.write("end", {"outcome": "interrupted", "code": type(error).__name__})
            raise
        log.write("end", {"outcome": "done"})


def logs_folder(work: Path) -> Path:
    """Return the folder of the logs of a study."""
    return work / "logs"


def _now() -> datetime:
    return datetime.now(tz=UTC)
