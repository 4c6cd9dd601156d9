"""The same encoder behind LitServe: `python -m benchmarks.litserve_app MODEL PORT INTRA_OP`.

What LitServe leaves to its user is done as well as it can be: images come as raw bodies (its examples send base64 in
JSON, which is slower), a batch is decoded by the server's own code on as many threads as there are cores, and
onnxruntime's threads do not spin.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Response
from numpy.typing import NDArray
from pydantic_core import to_json

from benchmarks.bare import open_session, open_view

Image = Annotated[bytes, Body(media_type="application/octet-stream")]


class Encoder(litserve.LitAPI):
    """An image in, an embedding out."""

    def __init__(self, model: Path, intra_op: int, **options: Any) -> None:
        super().__init__(**options)
        self.model, self.intra_op = model, intra_op

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.session, self.view = open_session(self.model, self.intra_op, False), open_view(self.model)
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def decode_request(self, request: Image) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> NDArray[np.uint8]:
        return np.stack(list(self.pool.map(self.view, inputs)))

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = self.session.run(["embedding"], {"images": x})[0]
        return embedding

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(output)

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        return Response(to_json({"embedding": output.tolist()}), media_type="application/json")


if __name__ == "__main__":
    model, port, intra_op = sys.argv[1:]
    api = Encoder(Path(model), int(intra_op), max_batch_size=16, batch_timeout=0.003)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning", access_log=False)
