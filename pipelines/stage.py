"""How a stage starts and how it fails."""

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Callable

OUTAGE = os.EX_TEMPFAIL  # exit code of a stage whose server did not answer: later it may
OURS = ("grpo_rm", "pipelines", "__main__")


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage. What a user can mend ends as one message and exit code 1, without a traceback.

    GRPO_RM_DEBUG=1 shows the traceback as well.
    """
    gc.set_threshold(50_000)  # importing torch and mlflow collects thousands of times otherwise: 1 s
    try:
        main()
    except Exception as error:
        if os.environ.get("GRPO_RM_DEBUG") or not is_for_user(error):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "interrupted; `dvc repro` runs this stage again, `dvc checkout` brings back the earlier result",
            file=sys.stderr,
        )
        sys.exit(130)

    # Tearing the interpreter down takes 1 to 2 s with torch and mlflow loaded. All files are written, so: leave.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def is_for_user(error: Exception) -> bool:
    """Whether an error speaks to the user: of the file system or the network, or raised by this project on purpose."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    is_ours = frame.f_globals["__name__"].partition(".")[0] in OURS
    return isinstance(error, OSError) or (type(error) in (ValueError, FloatingPointError) and is_ours)
