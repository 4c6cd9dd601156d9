"""What the server is told: by the command line, else by the environment."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Attributes:
        model: models:/NAME@ALIAS, or the path of an ONNX file.
        host: To listen on.
        port: Likewise; 0 takes a free one.
        index: The directory with an index for each model; None where there is none.
        poll_seconds: How often the alias is looked at without a webhook.
        tracking_uri: Of the registry; "" is the store below the current directory.
        webhook_secret: Shared with MLflow; "" accepts no webhook.
    """

    model: str
    host: str
    port: int
    index: Path | None
    poll_seconds: float
    tracking_uri: str
    webhook_secret: str = field(repr=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it in one line."""
        self.exit(2, f"error: {message}; `{self.prog} --help` lists the options\n")


def read_settings(arguments: Sequence[str] | None = None, *, program: str = "python -m serving") -> Settings:
    """Read the command line and the environment.

    Args:
        arguments: Of the command line; those of this process if None.
        program: How it was called, for --help.

    Raises:
        ValueError: A value is missing or not usable.
    """
    parser = _Parser(
        prog=program,
        description="Serve an exported encoder.",
        epilog=f"Example: {program} --model models:/grpo-rm-digits@champion --index indexes",
    )
    parser.add_argument("--model", help="models:/NAME@ALIAS, or the path of an ONNX file (GRPO_RM_MODEL)")
    parser.add_argument("--host", help="default 127.0.0.1, only this machine (GRPO_RM_HOST)")
    parser.add_argument("--port", help="default 8000 (GRPO_RM_PORT)")
    parser.add_argument("--index", help="directory that `grpo-rm index` writes, for /v1/similar (GRPO_RM_INDEX)")
    options = parser.parse_args(arguments)
    model = options.model or os.environ.get("GRPO_RM_MODEL")
    if not model:
        raise ValueError("no model: name one with --model or GRPO_RM_MODEL, such as models:/grpo-rm-digits@champion")
    index = options.index or os.environ.get("GRPO_RM_INDEX")
    return Settings(
        model=model,
        host=options.host or os.environ.get("GRPO_RM_HOST") or "127.0.0.1",
        port=_port(options.port or os.environ.get("GRPO_RM_PORT") or "8000"),
        index=Path(index) if index else None,
        poll_seconds=_seconds(os.environ.get("GRPO_RM_POLL_SECONDS") or "30"),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", ""),
        webhook_secret=os.environ.get("GRPO_RM_WEBHOOK_SECRET", ""),
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"the port is {text!r}, expected a number from 0 to 65535 (--port or GRPO_RM_PORT)")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise ValueError(f"GRPO_RM_POLL_SECONDS is {text!r}, expected seconds above 0, at most a day")
    return seconds
