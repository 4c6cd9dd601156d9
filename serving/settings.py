"""What the server is told: by the command line, else by the environment."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Limits:
    """What a stranger may send.

    Attributes:
        body_bytes: Of one request.
        images: Of one request.
        pixels: Of one image, as its header says.
        dense_pixels: Of the images of a request to a dense model, together; so many are also run at the same time.
        seconds: From the first byte of a request to the last of its answer.
    """

    body_bytes: int = 32 * 1024 * 1024
    images: int = 64
    pixels: int = 64_000_000
    dense_pixels: int = 2_097_152
    seconds: float = 30


@dataclass(frozen=True)
class Batching:
    """How requests share the model.

    Attributes:
        max_batch: Images the model runs on at once. On a CPU larger batches only keep others waiting; a GPU wants more.
        max_wait_ms: How long a batch that is not full waits for images that are being decoded.
        queue: Images that may wait; over it, requests are told to come back.
    """

    max_batch: int = 4
    max_wait_ms: float = 1
    queue: int = 256


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
        api_keys: A file with a key on each line; None lets everybody in.
        threads: That one batch is computed with; 0 takes the processors this process may use.
        batching: How requests share the model.
        limits: What a stranger may send.
        precision: Of the file of a version that is taken: fp32 or int8. Where the model is a file, the file has one.
    """

    model: str
    host: str
    port: int
    index: Path | None
    poll_seconds: float
    tracking_uri: str
    webhook_secret: str = field(repr=False)
    api_keys: Path | None
    threads: int
    batching: Batching
    limits: Limits
    precision: str


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
    parser.add_argument("--precision", help="of a version: fp32 (default) or int8 (GRPO_RM_PRECISION)")
    options = parser.parse_args(arguments)
    model = options.model or os.environ.get("GRPO_RM_MODEL")
    if not model:
        raise ValueError("no model: name one with --model or GRPO_RM_MODEL, such as models:/grpo-rm-digits@champion")
    keys = os.environ.get("GRPO_RM_API_KEYS_FILE")
    index = options.index or os.environ.get("GRPO_RM_INDEX")
    return Settings(
        model=model,
        host=options.host or os.environ.get("GRPO_RM_HOST") or "127.0.0.1",
        port=_port(options.port or os.environ.get("GRPO_RM_PORT") or "8000"),
        index=Path(index) if index else None,
        poll_seconds=_number("POLL_SECONDS", 30, above=0, most=86_400),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", ""),
        webhook_secret=os.environ.get("GRPO_RM_WEBHOOK_SECRET", ""),
        api_keys=Path(keys) if keys else None,
        threads=_whole("THREADS", 0, least=0, most=1024),
        batching=Batching(
            max_batch=_whole("MAX_BATCH", Batching.max_batch, least=1, most=1024),
            max_wait_ms=_number("MAX_WAIT_MS", Batching.max_wait_ms, above=-1e-9, most=1000),
            queue=_whole("QUEUE", Batching.queue, least=1, most=1_000_000),
        ),
        limits=Limits(
            body_bytes=_whole("MAX_BODY_BYTES", Limits.body_bytes, least=1, most=1 << 31),
            images=_whole("MAX_IMAGES", Limits.images, least=1, most=10_000),
            pixels=_whole("MAX_PIXELS", Limits.pixels, least=1, most=1 << 31),
            dense_pixels=_whole("MAX_DENSE_PIXELS", Limits.dense_pixels, least=1, most=1 << 31),
            seconds=_number("MAX_SECONDS", Limits.seconds, above=0, most=3600),
        ),
        precision=_precision(options.precision or os.environ.get("GRPO_RM_PRECISION") or "fp32"),
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"the port is {text!r}, expected a number from 0 to 65535 (--port or GRPO_RM_PORT)")
    return int(text)


def _precision(text: str) -> str:
    if text not in ("fp32", "int8"):
        raise ValueError(f"the precision is {text!r}, expected fp32 or int8 (--precision or GRPO_RM_PRECISION)")
    return text


def _whole(name: str, default: int, *, least: int, most: int) -> int:
    text = os.environ.get(f"GRPO_RM_{name}") or str(default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise ValueError(f"GRPO_RM_{name} is {text!r}, expected a whole number from {least:,} to {most:,}")
    return int(text)


def _number(name: str, default: float, *, above: float, most: float) -> float:
    text = os.environ.get(f"GRPO_RM_{name}") or str(default)
    try:
        number = float(text)
    except ValueError:
        number = above
    if not above < number <= most:
        raise ValueError(f"GRPO_RM_{name} is {text!r}, expected a number above {max(above, 0):g}, at most {most:g}")
    return number
