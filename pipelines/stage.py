"""How a stage starts and how it fails."""

import os
import sys
from collections.abc import Callable

USER_ERRORS = (ValueError, FileNotFoundError, ConnectionError, FloatingPointError)


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage. What a user can mend ends as one message and exit code 1, without a traceback.

    GRPO_RM_DEBUG=1 shows the traceback as well.
    """
    try:
        main()
    except USER_ERRORS as error:
        if os.environ.get("GRPO_RM_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "interrupted; `dvc repro` runs this stage again, `dvc checkout` brings back the earlier result",
            file=sys.stderr,
        )
        sys.exit(130)
