"""Prefect flows: the plan of a study walked as tasks, one per run and per step of the cohort."""
