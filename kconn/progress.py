"""Progress in the terminal: one bar per stage, with the time that is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kconn.execution import Event, Listener
from kconn.plan import Step

_VERBS: Final = {
    "ingest": "read runs",
    "denoise": "denoise",
    "nodes": "node series",
    "netmat": "netmats",
    "quality": "quality table",
    "cohort": "cohort cube",
    "test": "permutation tests",
}
#: Outcomes that are told beside a bar; a step that was made needs no word.
_NOTES: Final = {"kept": "already there", "failed": "failed", "skipped": "skipped"}


@contextmanager
def show_progress(console: Console, steps: Sequence[Step]) -> Iterator[Listener]:
    """Show one bar per stage while steps end; where there is no terminal, one line per finished stage.

    Parameters
    ----------
    console
        Where to write.
    steps
        The steps of the plan.
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
