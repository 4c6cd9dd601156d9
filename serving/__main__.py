"""`python -m serving --model models:/NAME@champion` or `--model PATH.onnx`."""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serving.settings import Settings, read_settings

if TYPE_CHECKING:
    from serving.deployment import Deployment
    from serving.follower import Follower
    from serving.indexes import Indexes

GRACE_SECONDS = 6  # for requests under way; container engines kill after 10


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m serving") -> None:
    """Serve until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn ends in order, then raises the signal again
        signal.signal(number, lambda *_: sys.exit(0))
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        serve(read_settings(arguments, program=program))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        logging.shutdown()
        os._exit(int(end.code or 0))  # a thread that still decodes what nobody waits for does not hold it up


def serve(settings: Settings) -> None:
    """Serve a file, which must be there, or follow an alias, which may come later.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The address cannot be had.
        ValueError: The file or a setting cannot be used.
    """
    import uvicorn

    from serving.access import ApiKeys
    from serving.app import create_app
    from serving.indexes import Indexes
    from serving.protocol import bounded_protocol

    listener = listen(settings.host, settings.port)
    indexes = Indexes(settings.index, settings.model)
    keys = ApiKeys(settings.api_keys) if settings.api_keys else None
    # Versions are downloaded for this process alone: what a start finds is what the registry has.
    with tempfile.TemporaryDirectory(prefix="grpo-rm-serving-", ignore_cleanup_errors=True) as cache:
        deployment, follower = open_model(settings, indexes, Path(cache))
        config = uvicorn.Config(
            create_app(deployment, follower, indexes, settings, keys),
            http=bounded_protocol(settings.limits.seconds),
            ws="none",
            access_log=False,  # /metrics counts; a line for each request costs more than some requests
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        logging.getLogger("serving").info("http://%s:%d", *listener.getsockname()[:2])
        uvicorn.Server(config).run([listener])


def open_model(settings: Settings, indexes: "Indexes", cache: Path) -> "tuple[Deployment, Follower | None]":
    """Load a file, or get ready to follow an alias.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file or a setting cannot be used.
    """
    from serving.deployment import Deployment, load_file
    from serving.follower import Follower, parse_alias
    from serving.registry import open_registry

    if alias := parse_alias(settings.model):
        deployment = Deployment()
        return deployment, Follower(
            deployment,
            open_registry(settings.tracking_uri),
            alias,
            cache=cache,
            poll_seconds=settings.poll_seconds,
            threads=settings.threads,
            precision=settings.precision,
            indexes=indexes,
        )
    live = load_file(Path(settings.model), threads=settings.threads)
    for warning in indexes.warnings(live):
        logging.getLogger("serving").warning(warning)
    return Deployment(live), None


def listen(host: str, port: int) -> socket.socket:
    """Take an address, before anything else is done.

    Raises:
        OSError: It cannot be had.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}:{port}: {error.strerror}. Name another address with --host and --port "
            "(GRPO_RM_HOST, GRPO_RM_PORT)"
        ) from error
    return listener


if __name__ == "__main__":
    main()
