"""What every test may use."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from tests.acceptance import Acceptance
from tests.bucket import Bucket
from tests.warm_shell import WarmShell

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; tests that need them are skipped on a machine without."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no real data beside this checkout (../shared/data)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def palm_oracles() -> Path:
    """Frozen reference answers of PALM beside the checkout."""
    if not (SHARED / "oracles" / "palm").is_dir():
        pytest.skip("no PALM reference answers beside this checkout (../shared/oracles/palm)")
    return SHARED / "oracles" / "palm"


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server of the test run, with a database that goes with it."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGINT as a program in a terminal hears it, and what it starts, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def s3() -> Iterator[Bucket]:
    """A local server of S3 with an empty bucket, in the environment of the test run."""
    with Bucket() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def shell() -> Iterator[WarmShell]:
    """The commands of `kconn` in processes that start at once and can be killed."""
    with WarmShell() as warm:
        yield warm


def pytest_configure(config: pytest.Config) -> None:
    """Collect what the tests marked ``faults("name")`` count, and print one JSON line per name."""
    config.pluginmanager.register(Acceptance(shown="faults" in config.option.markexpr), "acceptance")


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Record named counts of an acceptance test; those of tests that share its name are added up."""

    def record(**counts: float) -> None:
        for name, value in counts.items():
            record_property(name.replace("_", " "), value)

    return record
