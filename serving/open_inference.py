"""The Open Inference Protocol as OpenAPI describes it. What reads and writes its tensors is serving/tensors.py."""

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from serving.model import INPUT, OUTPUTS
from serving.tensors import FILES

HEADER_SIZE = "Inference-Header-Content-Length"  # how many bytes of a body are JSON, where binary data follow


class Live(BaseModel):
    """The server is alive."""

    live: bool = True


class Ready(BaseModel):
    """A model is loaded."""

    ready: bool = True


class ModelReady(BaseModel):
    """This model is loaded."""

    name: str
    ready: bool = True


class Server(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Tensor(BaseModel):
    """An input or output; -1 is any number of images."""

    name: str
    datatype: str
    shape: list[int]


class Model(BaseModel):
    """The model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class OutputTensor(Tensor):
    """An output of a response: its numbers row by row, or the size of its binary data."""

    data: list[float | str] | None = None
    parameters: dict[str, int] | None = None


class InferResponse(BaseModel):
    """A response."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class Error(BaseModel):
    """What was got and what was expected."""

    error: str


# A gray pixel as PNG: it fits every model.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "integer", "boolean"]}}
REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Repeated in the response."},
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string", "enum": [INPUT, FILES]},
                    "datatype": {"type": "string", "enum": ["UINT8", "BYTES"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "data": {"type": "array", "items": {}, "description": "Flat, or nested as the shape says."},
                    "parameters": PARAMETERS,
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "enum": list(OUTPUTS)}, "parameters": PARAMETERS},
            },
        },
    },
    "example": {
        "id": "1",
        "inputs": [
            {
                "name": FILES,
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"content_type": "base64"},
                "data": [PIXEL],
            }
        ],
        "outputs": [{"name": "logits", "parameters": {"classification": 3}}],
    },
}
INFER: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": f"JSON; or JSON, {HEADER_SIZE} bytes of it, and binary data after it.",
            "content": {
                "application/json": {"schema": REQUEST},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
    "response_class": Response,
    "responses": {
        200: {
            "description": "The outputs; binary ones after the JSON.",
            "model": InferResponse,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        400: {"description": "The request is not as the protocol or the model wants it.", "model": Error},
        413: {"description": "The body is too long.", "model": Error},
        415: {"description": "The body is compressed by something else than gzip or deflate.", "model": Error},
    },
}

OTHER_MODEL: dict[int | str, dict[str, Any]] = {
    404: {"description": "Another model or version is served; `error` says which.", "model": Error},
}
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "No model is loaded yet, or there is too much to do.", "model": Error},
}
