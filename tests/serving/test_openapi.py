"""Every route, as its own description says it may be asked, and as it may not."""

import subprocess
import sys

import pytest
from server_process import serving
from tiny_onnx import write_onnx

EVERYTHING = ("--phases=examples,coverage,fuzzing,stateful", "--max-examples=200")


@pytest.mark.parametrize("scope", [("--phases=coverage",), pytest.param(EVERYTHING, marks=pytest.mark.slow)])
def test_no_request_that_the_description_suggests_is_an_internal_error(tmp_path, scope):
    """Schemathesis makes valid and invalid requests of /openapi.json, also chains of them."""
    (tmp_path / "schemathesis.toml").write_text('[parameters]\n"path.name" = "tiny.onnx"\n')
    with serving(write_onnx(tmp_path / "tiny.onnx"), tmp_path) as server:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "schemathesis.cli",
                "run",
                f"{server.url}/openapi.json",
                "--checks=not_a_server_error,content_type_conformance,response_schema_conformance",
                *scope,
                "--generation-deterministic",
                "--no-color",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert "Traceback" not in server.log.read_text(), server.log.read_text()
