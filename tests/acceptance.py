"""What `make faults` prints: one JSON line per acceptance test, with the counts of all tests that carry its name."""

import json
from collections import Counter, defaultdict
from numbers import Number

import pytest

#: Name -> what passing means. A test carries one of these names: ``@pytest.mark.faults("kill")``.
NAMES = {
    "bad input": "every malformed file or study stops with its code, place, rule and fix; no good file does",
    "fuzz": "a minute of damage: no wrong data from a stream, no exception but InputError",
    "kill": "SIGKILL at any moment: nothing partial visible, nothing finished made again, the same bits",
    "network": "workers and links lost: the run ends with the same bits",
    "disk full": "E-DISK, nothing published, no hang; goes on when there is room",
    "memory": "what does not fit is refused before compute; estimates near the peak",
    "identity": "one set of bits for any workers, threads, chunks and scheduler",
    "intruders": "nobody without the certificate gets in",
    "deployments": "a schedule fires, a worker dies, its run is told Crashed, the next one goes on: the right store",
    "resume": "finished steps are not executed again",
    "rot": "every flipped bit, lost file and edited record is found",
    "patients": "no planted marker is found in anything that is written",
    "order": "rows in any order, one result",
    "seeds": "one null distribution, however it is computed",
    "scale": "time and memory per run do not grow with the study",
    "deploy lint": "no finding of a validator but those listed with a reason; seeded defects are caught",
    "kubernetes": "Dask's operator and Prefect's worker make of our manifests pods that run a study",
    "workers": "a worker that dies or freezes has a name and costs nothing finished",
}


class Acceptance:
    """Adds up outcomes and counts while tests run."""

    def __init__(self, *, shown):
        self._shown = shown
        self._tests = defaultdict(Counter)
        self._counts = defaultdict(dict)
        self._reasons = defaultdict(set)
        self._seconds = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        mark = item.get_closest_marker("faults")
        if mark is not None:
            (name,) = mark.args
            assert name in NAMES, name
            self._add(name, report, call.duration)
        return report

    def _add(self, name, report, seconds):
        self._seconds[name] += seconds
        if report.when == "call" or report.outcome != "passed":
            self._tests[name][report.outcome] += 1
        if report.skipped:
            self._reasons[name].add(str(report.longrepr[2]).removeprefix("Skipped: "))
        if report.when == "call":
            counts = self._counts[name]
            for key, value in report.user_properties:
                counts[key] = counts.get(key, 0) + value if isinstance(value, Number) else value

    def pytest_terminal_summary(self, terminalreporter):
        if not self._shown:
            return
        terminalreporter.section("acceptance")
        for name in NAMES:
            if name not in self._tests:
                continue
            line = {
                "acceptance": name,
                "tests": dict(self._tests[name]),
                **self._counts[name],
                **({"skipped because": sorted(self._reasons[name])} if self._reasons[name] else {}),
                "seconds": round(self._seconds[name], 1),
            }
            terminalreporter.write_line(json.dumps(line))
