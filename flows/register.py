"""What a Prefect server must know besides the deployments: ``python -m flows.register`` (again, to change it).

Two automations and a limit. A run whose process was killed sends no more heartbeats and is marked as crashed. An event
says that sessions arrived, and the watch looks at once instead of at its next time. Steps that need much memory run one
at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.walking import HEAVY_TAG

#: Event that tells of new sessions: ``prefect event emit kconn-sessions.arrived --resource-id kconn-inputs``.
ARRIVED: Final = "kconn-sessions.arrived"
WATCH: Final = "kconn-watch/watch"
CRASHED: Final = "kconn: a run without heartbeats has crashed"
LOOK: Final = "kconn: look when sessions arrived"


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the server in PREFECT_API_URL."""
    parser = argparse.ArgumentParser(prog="python -m flows.register", description=main.__doc__)
    parser.add_argument("--heartbeat-seconds", type=int, default=100, help="silence after which a run has crashed")
    parser.add_argument("--heavy-steps", type=int, default=1, help="steps with much memory that run at once")
    arguments = parser.parse_args(argv)
    with get_client(sync_client=True) as client:
        register(client, silence=timedelta(seconds=arguments.heartbeat_seconds), n_heavy=arguments.heavy_steps)
    sys.stdout.write(f"registered: {CRASHED}; {LOOK}; {arguments.heavy_steps} x {HEAVY_TAG}\n")
    return 0


def register(client: SyncPrefectClient, *, silence: timedelta, n_heavy: int) -> None:
    """Tell a server of the limit and the automations; earlier ones of the same name are replaced.

    Parameters
    ----------
    client
        Of the server.
    silence
        Time without a heartbeat after which a run is marked as crashed; runs send one every 30 s.
    n_heavy
        Steps with much memory that run at once, over all flows.

    Raises
    ------
    prefect.exceptions.ObjectNotFound
        If the watch was not deployed yet.
    """
    client.create_concurrency_limit(tag=HEAVY_TAG, concurrency_limit=n_heavy)
    watch = client.read_deployment_by_name(WATCH)
    for automation in (_crash_silent_runs(silence), _look_on_arrival(watch.id)):
        _replace(client, automation)


def _crash_silent_runs(silence: timedelta) -> AutomationCore:
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    return AutomationCore(
        name=CRASHED,
        description="Its process was killed, or its machine went away. What it finished is kept; the next run goes on.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ended},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, name=None, message="No heartbeat: its process is gone.", force=False
            )
        ],
    )


def _look_on_arrival(watch: UUID) -> AutomationCore:
    return AutomationCore(
        name=LOOK,
        description="Whatever copies sessions may say so; the watch then looks at once.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={ARRIVED},
            threshold=1,
            within=timedelta(0),
            match=ResourceSpecification({}),
        ),
        actions=[RunDeployment(source="selected", deployment_id=watch, parameters=None, job_variables=None)],
    )


def _replace(client: SyncPrefectClient, automation: AutomationCore) -> None:
    for earlier in client.read_automations_by_name(automation.name):
        client.delete_automation(earlier.id)
    client.create_automation(automation)


if __name__ == "__main__":
    sys.exit(main())
