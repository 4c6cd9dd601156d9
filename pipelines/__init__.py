"""The stages of dvc.yaml and what surrounds them: files, trackers, schedulers."""

import importlib.util
import os
import sys

if importlib.util.find_spec("pyarrow") is None or importlib.util.find_spec("pydantic") is None:
    sys.exit(
        f"error: {sys.executable} does not have the packages of this project, expected the Python of its environment. "
        "Run `source .venv/bin/activate` first (`make setup` creates it)"
    )

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "PASSIVE",  # on a shared machine, threads that spin while they wait slow training down 4 times
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)
