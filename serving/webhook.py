"""MLflow's webhooks: is a delivery genuine, is it about our alias; and how one is registered.

    python -m serving.webhook register --url http://serving:8000/hooks/mlflow

makes the tracking server (MLFLOW_TRACKING_URI) send its changes of aliases there, signed with GRPO_RM_WEBHOOK_SECRET.
"""

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import os
import sys
from collections.abc import Sequence

from serving.follower import Alias
from serving.rest import MlflowServer

MAX_AGE_SECONDS = 300
MAX_BYTES = 64 * 1024
ENTITY = "model_version_alias"
EVENTS = [{"entity": ENTITY.upper(), "action": action} for action in ("CREATED", "DELETED")]
NAME = "grpo-rm-serving"


def is_genuine(body: bytes, *, secret: str, signature: str, delivery_id: str, timestamp: str, now: float) -> bool:
    """Whether a delivery was signed with the secret, no more than 5 minutes from now.

    Args:
        body: As it came, byte for byte.
        secret: That MLflow was given with the webhook.
        signature: Header X-MLflow-Signature: "v1," and the base64 of HMAC-SHA256 over "delivery_id.timestamp.body".
        delivery_id: Header X-MLflow-Delivery-Id.
        timestamp: Header X-MLflow-Timestamp, in seconds since 1970.
        now: Likewise.
    """
    is_number = timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12
    if not secret or not is_number or abs(now - int(timestamp)) > MAX_AGE_SECONDS:
        return False
    expected = hmac.digest(secret.encode(), f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256)
    version, _, encoded = signature.partition(",")
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    return version == "v1" and hmac.compare_digest(expected, given)


def is_about(body: bytes, alias: Alias) -> bool:
    """Whether a delivery tells that this alias was set or deleted.

    Raises:
        ValueError: The body is no event of MLflow.
    """
    try:
        event = json.loads(body)
        entity, data = event["entity"], event["data"]
        return bool(entity == ENTITY and data["name"] == alias.name and data["alias"] == alias.alias)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError('the body is no event of MLflow, expected {"entity": ..., "data": {...}}') from error


def register(server: MlflowServer, url: str, secret: str, name: str = NAME) -> str:
    """Make the server send changes of aliases to a URL, and return the webhook's id.

    A webhook of that name is changed, so that this may run at every start. The server looks for new webhooks every
    MLFLOW_WEBHOOK_CACHE_TTL seconds (its own setting; 60 by default).

    Raises:
        ConnectionError: The server does not answer, or refuses, such as a URL it may not call.
    """
    webhook = {"name": name, "url": url, "secret": secret, "events": EVENTS, "status": "ACTIVE"}
    known = _find(server, name)
    if known is None:
        return str(server.call("POST", "webhooks", body=webhook)["webhook"]["webhook_id"])
    server.call("PATCH", f"webhooks/{known}", body=webhook)
    return known


def _find(server: MlflowServer, name: str) -> str | None:
    token = ""
    while True:
        page = server.call("GET", "webhooks", query={"page_token": token} if token else None)
        for webhook in page.get("webhooks", []):
            if webhook["name"] == name:
                return str(webhook["webhook_id"])
        if not (token := page.get("next_page_token", "")):
            return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Register the webhook, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m serving.webhook", description="MLflow's webhook to the server.")
    command = parser.add_subparsers(required=True).add_parser("register", help="create it, or change it")
    command.add_argument("--url", required=True, help="where MLflow reaches the server: http://HOST:PORT/hooks/mlflow")
    command.add_argument("--name", default=NAME, help="one for each server (default: %(default)s)")
    options = parser.parse_args(arguments)
    uri, secret = (os.environ.get(name, "") for name in ("MLFLOW_TRACKING_URI", "GRPO_RM_WEBHOOK_SECRET"))
    if not uri.startswith(("http://", "https://")):
        raise ValueError("MLFLOW_TRACKING_URI names no server: only an MLflow server sends webhooks")
    if not secret:
        raise ValueError("GRPO_RM_WEBHOOK_SECRET is not set: give the same one to this command and to the server")
    webhook_id = register(MlflowServer(uri), options.url, secret, options.name)
    print(f"webhook {options.name} ({webhook_id}) -> {options.url}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(1)
