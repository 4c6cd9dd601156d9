"""A tree of processes that is still growing ends whole."""

import subprocess
import sys
import time

from pipelines.processes import end_tree

# Each `sleep` holds the pipe open, so that a survivor is seen: reading it would not come to an end.
GROWING = """
import subprocess
print("started", flush=True)
children = [subprocess.Popen(["sleep", "60"]) for _ in range(100)]
"""


def test_a_tree_that_grows_while_it_is_ended():
    for attempt in range(5):
        process = subprocess.Popen([sys.executable, "-c", GROWING], stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(0.005 * attempt)
            start = time.monotonic()
            end_tree(process, grace=10)
            assert process.stdout.read() == ""
            assert time.monotonic() - start < 20
