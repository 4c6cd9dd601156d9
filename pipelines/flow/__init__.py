"""Prefect: flows over the stages of dvc.yaml. Nothing outside this package imports prefect; no stage knows of it."""
