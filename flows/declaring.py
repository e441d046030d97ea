"""What every flow of kconn is declared with, and what it may use."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from prefect import Flow, flow
from prefect.client.schemas import State
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict, Field

from kconn.cluster.table import ClusterKind
from kconn.errors import KconnError, unforeseen

#: Tasks that wait at the same time; each waits for one run on the workers.
WAITING: Final = 32

P = ParamSpec("P")
R = TypeVar("R")


class Resources(BaseModel):
    """What a flow may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(
        default=None,
        ge=0,
        description="worker processes (default: what [cluster] says, or one per core; 0: in this process)",
    )
    scheduler: str | None = Field(default=None, description="address of a running Dask scheduler")
    cluster: ClusterKind | None = Field(default=None, description="instead of [cluster] kind")
    tls: str | None = Field(default=None, description="certificates of `kconn tls init`, instead of [cluster] tls")
    step_minutes: float = Field(
        default=240.0, gt=0, description="a task may compute this long on a worker (default 240)"
    )
    performance_report: bool = Field(default=False, description="write Dask's report beside the study's")


#: What the flow of a study uses unless it is told otherwise.
AS_THE_STUDY_SAYS: Final = Resources()


def study_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R | State[Any]]]:
    """Return the decorator of a flow that hands runs to Dask workers and ends in words when it fails."""

    def declared(call: Callable[P, R]) -> Flow[P, R | State[Any]]:
        runner: Any = ThreadPoolTaskRunner(max_workers=WAITING)  # Prefect's own default is of this type
        made: Flow[P, R | State[Any]] = flow(name=name, task_runner=runner, log_prints=False, persist_result=False)(
            in_words(call)
        )
        return made

    return declared


def in_words(call: Callable[P, R]) -> Callable[P, R | State[Any]]:
    """Let a flow or task end as failed with an error in words, where Prefect would log a traceback.

    Whoever asks its state for the result gets the error raised.
    """

    @wraps(call)
    def ended(*args: P.args, **kwargs: P.kwargs) -> R | State[Any]:
        try:
            return call(*args, **kwargs)
        except KconnError as error:
            return Failed(message=str(error), data=error)
        except Exception as error:  # noqa: BLE001 - the border of the product
            found = unforeseen(error)
            return Failed(message=str(found), data=found)

    return ended
