"""What every test may use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
def shell() -> Iterator[WarmShell]:
    """The commands of `kconn` in processes that start at once and can be killed."""
    with WarmShell() as warm:
        yield warm
