"""The same encoder behind LitServe: `python -m benchmarks.litserve_app MODEL PORT documented|tuned`.

`documented` is how its examples are written: base64 in JSON, an image decoded in `decode_request`, a default session.
`tuned` does what LitServe leaves to its user as well as it can be done: raw bodies, a batch decoded on as many threads
as there are cores, and onnxruntime's threads do not spin. Both decode with the server's own code.
"""

import base64
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Body, Request, Response
from numpy.typing import NDArray
from pydantic_core import to_json

from benchmarks.bare import open_session, open_view

RawImage = Annotated[bytes, Body(media_type="application/octet-stream")]


class Documented(litserve.LitAPI):
    """An image in, an embedding out."""

    def __init__(self, model: Path, **options: Any) -> None:
        super().__init__(**options)
        self.model = model

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.view = open_view(self.model)
        self.session = onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])

    def decode_request(self, request: Request) -> NDArray[np.uint8]:
        content: Mapping[str, str] = request  # the JSON, in spite of the annotation that LitServe's own default is
        pixels: NDArray[np.uint8] = self.view(base64.b64decode(content["image"]))
        return pixels

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = self.session.run(["embedding"], {"images": x})[0]
        return embedding

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        return {"embedding": output.tolist()}


class Tuned(Documented):
    """The same, faster."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        cores = len(os.sched_getaffinity(0))
        self.pool, self.view = ThreadPoolExecutor(cores), open_view(self.model)
        self.session = open_session(self.model, cores, False)

    def decode_request(self, request: RawImage) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> NDArray[np.uint8]:
        return np.stack(list(self.pool.map(self.view, inputs)))

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        return Response(to_json({"embedding": output.tolist()}), media_type="application/json")


if __name__ == "__main__":
    model, port, style = sys.argv[1:]
    api = {"documented": Documented, "tuned": Tuned}[style](Path(model), max_batch_size=16, batch_timeout=0.003)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning", access_log=False)
