"""Stages: path in, path out; the only place where files meet computation.

A stage is a plain function of a `Job`. It reads what the job's step names, calls Dataset functions, and publishes one
sealed group. Running it again skips what is published with the same content key.
"""

from kconn.stages.job import STAGES, Job, Outcome, run_job

__all__ = ["STAGES", "Job", "Outcome", "run_job"]
