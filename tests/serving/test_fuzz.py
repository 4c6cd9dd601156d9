"""Damaged image files of every format, and requests nobody wrote by hand: never an internal error, never the end."""

import collections
import http.client
import io
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image
from server_process import serving
from tiny_onnx import write_onnx

FILES = {  # with the options that lead into other parsers
    "PNG": ({}, {"optimize": True}),
    "JPEG": ({}, {"progressive": True}),
    "GIF": ({},),
    "WEBP": ({}, {"lossless": True}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}),
    "BMP": ({},),
    "AVIF": ({},),
    "JPEG2000": ({},),
    "PPM": ({},),
}


def seeds() -> list[bytes]:
    """Return a picture in every format, with EXIF where the format has it."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((80, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for kind, variants in FILES.items():
        for options in variants:
            buffer = io.BytesIO()
            extra = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "AVIF") else {}
            image.save(buffer, kind, **options, **extra)
            files.append(buffer.getvalue())
    return files


def mutate(files: list[bytes], rng: np.random.Generator) -> bytes:
    """Return a damaged copy of one of the files."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 4)):
        position = int(rng.integers(len(data) or 1))
        if rng.random() < 0.5:  # headers are where parsers go wrong
            position = min(position, 64)
        length = int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                data[position : position + length] = rng.bytes(length)
            case 1:
                data[position : position + 4] = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF])).to_bytes(
                    4, "big"
                )
            case 2:
                data[position : position + 4] = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF])).to_bytes(
                    4, "little"
                )
            case 3:
                del data[position:]
            case 4:
                data[position:position] = data[position : position + 100 * length]
            case _:
                other = files[rng.integers(len(files))]
                data[position:] = other[position:]
    return bytes(data)


def send(server, seed: int, count: int, statuses: collections.Counter, slowest: list[float]) -> None:
    rng, files = np.random.default_rng(seed), seeds()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(count):
        body = mutate(files, rng)
        start = time.monotonic()
        connection.request("POST", "/v1/embed", body or b"x")
        answer = connection.getresponse()
        content = answer.read()
        slowest.append(time.monotonic() - start)
        statuses[answer.status] += 1
        assert answer.status in (200, 400), (answer.status, content, body)
    connection.close()


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_images(tmp_path, count):
    with serving(write_onnx(tmp_path / "tiny.onnx"), tmp_path) as server:
        statuses, seconds, failures = collections.Counter(), [], []
        process = psutil.Process(server.process.pid)

        def run(seed):
            try:
                send(server, seed, count // 2, statuses, seconds)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(seed + count,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        assert sum(statuses.values()) == count
        assert min(statuses[200], statuses[400]) > count / 20, f"the mutations are too weak or too strong: {statuses}"
        assert max(seconds) < 5
        assert process.memory_info().rss < 600e6
        assert "Traceback" not in server.log.read_text(), server.log.read_text()
        assert server.end() == 0
