"""The one-shot service that makes the bucket, against an S3 server over a real socket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "create_bucket.py"
pytestmark = pytest.mark.service


@pytest.fixture
def s3():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_bucket_is_made_once(s3):
    settings = {"AWS_ENDPOINT_URL_S3": s3, "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    command = [sys.executable, SCRIPT, "mlflow"]
    said = [
        subprocess.run(command, env=os.environ | settings, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert said == ["bucket mlflow: made\n", "bucket mlflow: is there\n"]
