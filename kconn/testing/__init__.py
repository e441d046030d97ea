"""Synthetic runs and studies with a known answer, to try things out on and to test against."""

from kconn.testing.run import simulate_run
from kconn.testing.study import SimulatedStudy, simulate_study

__all__ = ["SimulatedStudy", "simulate_run", "simulate_study"]
