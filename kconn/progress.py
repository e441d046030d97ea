"""Progress in the terminal: one bar per stage, with the time that is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from kconn.execution import Event, Listener
from kconn.io.storage import Place
from kconn.stages.running import find_running
from kconn.study.plan import Step

_VERBS: Final = {
    "ingest": "read runs",
    "denoise": "denoise",
    "reduce": "reduce runs",
    "nodes": "node series",
    "netmat": "netmats",
    "map": "maps of runs",
    "quality": "quality table",
    "dense": "dense connectome",
    "merge": "merge runs",
    "ica": "group ICA",
    "select": "accepted components",
    "cohort": "cohort cube",
    "motion": "motion of groups",
    "coverage": "coverage",
    "qcfc": "QC-FC",
    "blocks": "network blocks",
    "amplitudes": "amplitudes",
    "reliability": "reliability",
    "map-cohort": "cohorts of maps",
    "test": "permutation tests",
    "feature-test": "permutation tests of blocks and nodes",
    "map-test": "permutation tests of maps",
    "map-correction": "correction over nodes",
}
#: Outcomes that are told beside a bar; a step that was made needs no word.
_NOTES: Final = {"kept": "already there", "failed": "failed", "skipped": "skipped"}


class _Tests(ProgressColumn):
    """How far the test that is going on is, beside the bar of tests."""

    max_refresh = 1.0

    def __init__(self, root: Place, steps: Sequence[Step]) -> None:
        super().__init__()
        self._root = root
        self._steps = [step for step in steps if step.stage == "test"]

    def render(self, task: Task) -> Text:
        """Return the words; looked up once a second while tests run."""
        if task.description != _VERBS["test"] or task.finished:
            return Text()
        running = max(find_running(self._root, self._steps), key=lambda test: test.last, default=None)
        return Text("" if running is None else str(running))


@contextmanager
def show_progress(console: Console, steps: Sequence[Step], root: Place) -> Iterator[Listener]:
    """Show one bar per stage while steps end; where there is no terminal, one line per finished stage.

    Parameters
    ----------
    console
        Where to write.
    steps
        The steps of the plan.
    root
        The store: beside it lies how far a test is.
    """
    totals = Counter(step.stage for step in steps)
    left = Counter(totals)
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        _Tests(root, steps),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {stage: bars.add_task(_VERBS[stage], total=n, note="") for stage, n in totals.items()}
        outcomes: Counter[tuple[str, str]] = Counter()

        def listen(event: Event) -> None:
            left[event.stage] -= 1
            outcomes[event.stage, event.outcome] += 1
            counts = [(outcomes[event.stage, outcome], words) for outcome, words in _NOTES.items()]
            note = ", ".join(f"{n} {words}" for n, words in counts if n)
            bars.update(tasks[event.stage], advance=1, note=note)
            if event.outcome == "failed":
                bars.console.print(f"[red]failed[/red] {event.stage} of {event.where}", highlight=False)
            if not console.is_terminal and left[event.stage] == 0:
                console.print(f"{_VERBS[event.stage]}: {totals[event.stage]}{' (' + note + ')' if note else ''}")

        yield listen
