"""What the documentation shows is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), flags=re.S)


@pytest.mark.parametrize(("example", "last"), [(0, r"reward -?\d\.\d{3}, p\(label\) 0\.\d{3}"), (1, r"0\.\d+|1\.0")])
def test_the_examples_of_the_library_run(tmp_path, example, last):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", EXAMPLES[example]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(last, done.stdout.splitlines()[-1])
