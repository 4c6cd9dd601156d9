"""`grpo-rm embed`: sources, equality with the server's model, what cannot be read, and runs that end early."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from server_process import picture
from tiny_onnx import write_onnx

from pipelines import embedding
from pipelines.embed import embed_to_file, read_about
from pipelines.image_files import open_image_files
from serving.model import OnnxModel

ROOT = Path(__file__).parents[2]


def write_images(folder: Path, count: int, size=(20, 12)) -> Path:
    """Write images of noise, in two classes and several formats."""
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = ("png", "jpg", "bmp", "webp")[number % 4]
        path = folder / ("cat", "dog")[number % 2] / f"{number:04d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


def write_shard(path: Path, rows, **columns: pa.Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": None} for _, data in rows]
    table = pa.table({"id": [id_ for id_, _ in rows], "image": images, **columns})
    pq.write_table(table, path, row_group_size=5)
    return path


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("model") / "tiny.onnx", bias=(0, 0, 1))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 75)


def command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pipelines.commands", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, **options)


def test_embeddings_are_those_of_the_server(onnx, images, tmp_path):
    out = tmp_path / "embeddings.parquet"
    embed_to_file([images], model=str(onnx), out=out)
    table = pq.read_table(out)
    paths = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*"))
    assert table["id"].to_pylist() == paths
    assert table["label"].to_pylist() == [path[:3] for path in paths]
    files = [(images / path).read_bytes() for path in paths]
    np.testing.assert_array_equal(embedding.to_array(table["embedding"]), OnnxModel(onnx).predict(files).embedding)
    assert table["sha256"].to_pylist() == [hashlib.sha256(file).hexdigest() for file in files]
    about = read_about(out)
    assert (about["images"], about["skipped"], about["model"]["model_sha256"]) == (75, 0, "5" * 64)
    assert about["model"]["data_hash"] == "0123456789abcdef0123456789abcdef.dir"
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(FileExistsError, match=r"exists already: delete it, or name another --out"):
        embed_to_file([images], model=str(onnx), out=out)


def test_what_cannot_be_read_is_listed(onnx, tmp_path, capsys):
    folder = write_images(tmp_path / "images", 3)
    (folder / "cat/broken.png").write_bytes(b"\x89PNG")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "cat/loop").symlink_to(folder)
    (folder / "LOUD.PNG").write_bytes(picture((1, 2, 3)))
    out = tmp_path / "embeddings.parquet"
    embed_to_file([folder], model=str(onnx), out=out)
    table = pq.read_table(out)
    assert table["id"].to_pylist() == ["LOUD.PNG", "cat/0000.png", "cat/0002.bmp", "dog/0001.jpg"]
    assert table["label"].to_pylist() == [None, "cat", "cat", "dog"]
    skipped = (tmp_path / "embeddings.skipped.csv").read_text().splitlines()
    assert skipped[0] == "id,error"
    assert skipped[1].startswith('cat/broken.png,"not an image: none of AVIF, BMP')
    assert skipped[2] == "gone.jpg,it cannot be read: No such file or directory"
    assert read_about(out)["skipped"] == 2
    captured = capsys.readouterr()
    assert "1 files in" in captured.out and "have no extension of an image (.txt 1): left out" in captured.out
    assert "warning: 2 of 6 images could not be read" in captured.err


def test_shards(onnx, tmp_path):
    rows = [(f"image-{number}", picture((number, 0, 0))) for number in range(12)]
    labels = pa.array([0, 1] * 4)
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/dataset.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    write_shard(tmp_path / "prepared/train/00000.parquet", rows[:8], label=labels)
    write_shard(tmp_path / "prepared/train/00001.parquet", rows[8:], label=labels[:4])
    files = open_image_files([tmp_path / "prepared/train"])
    for start in range(13):
        assert [(file.id, file.read()) for file in files.read_from(start)] == rows[start:]
    embed_to_file([tmp_path / "prepared/train"], model=str(onnx), out=tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table["label"].to_pylist() == ["cat", "dog"] * 6
    np.testing.assert_allclose(embedding.to_array(table["embedding"])[:, 0], np.arange(12) / 255, rtol=1e-6)


def test_several_sources(tmp_path):
    folder = write_images(tmp_path / "images", 5)
    rows = [(f"image-{number}", b"bytes") for number in range(7)]
    shard = write_shard(tmp_path / "shard.parquet", rows)
    files = open_image_files([folder, shard])
    ids = list(files.ids())
    assert len(files) == len(ids) == 12
    for start in range(13):
        assert [file.id for file in files.read_from(start)] == ids[start:]
    assert [file.label for file in files.read_from(5)] == [None] * 7
    state = files.state()
    (folder / "dog/0001.jpg").touch()
    assert open_image_files([folder, shard]).state() != state
    with pytest.raises(ValueError, match="two images have the id 'image-0'"):
        open_image_files([shard, shard])


def test_labels_below_splits(tmp_path):
    for path in ("train/cat/a.png", "test/dog/deep/b.png", "val/c.png", "d.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    labels = {file.id: file.label for file in open_image_files([tmp_path]).read_from(0)}
    assert labels == {"d.png": None, "test/dog/deep/b.png": "dog", "train/cat/a.png": "cat", "val/c.png": None}


def test_a_name_that_is_no_text(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"content")
    (file,) = open_image_files([tmp_path]).read_from(0)
    assert (file.id, file.read()) == ("\\xff.png", b"content")


def test_sources_that_cannot_be_used(onnx, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "bad.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "ids.parquet")
    for name, kind, reason in [
        ("nowhere", FileNotFoundError, "does not exist"),
        ("empty", FileNotFoundError, "holds no image: expected files that end in"),
        ("text.txt", ValueError, "is a file, expected a folder"),
        ("bad.parquet", ValueError, "is no Parquet file"),
        ("ids.parquet", ValueError, "has the columns id, expected id, image.bytes and label"),
    ]:
        with pytest.raises(kind, match=reason):
            open_image_files([tmp_path / name])
    (tmp_path / "empty/a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 images can be read, the first is a.png: the file is empty"):
        embed_to_file([tmp_path / "empty"], model=str(onnx), out=tmp_path / "e.parquet")
    assert not list(tmp_path.glob("e.*")), "nothing is left in the way"
    with pytest.raises(ValueError, match=r"expected a name that ends in .parquet"):
        embed_to_file([tmp_path / "empty"], model=str(onnx), out=tmp_path / "e.csv")


SLOW_DECODING = """
import sys, time
from pipelines import commands, embedding, parts
run, parts.MAX_SECONDS = embedding._run, 0.0
def slowly(decoded, encoder):
    time.sleep(0.25)
    return run(decoded, encoder)
embedding._run, embedding.BATCH_SIZE = slowly, 8
commands.main()
"""


def interrupt(number: signal.Signals, arguments: list[str], partial: Path) -> tuple[int, str]:
    """Start a run, end it by a signal when something is finished, and return its exit code and messages."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_DECODING, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 20
    while len(list(partial.glob("*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    _, messages = process.communicate(timeout=20)
    return process.returncode, messages


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_ends_early_is_gone_on_with(number, onnx, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "BATCH_SIZE", 8)
    folder = write_images(tmp_path / "images", 75)
    (folder / "cat/broken.png").write_bytes(b"")
    out, partial = tmp_path / "out.parquet", tmp_path / "out.parquet.partial"
    arguments = ["embed", str(folder), "--model", str(onnx), "--out", str(out)]
    code, messages = interrupt(number, arguments, partial)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert not out.exists() and "Traceback" not in messages
    if number != signal.SIGKILL:
        assert "of 76 images; the same command goes on from there" in messages
    before = {path: path.stat().st_mtime_ns for path in partial.glob("*.parquet")}
    (partial / "000000000070.parquet").write_bytes(b"damaged")
    seen = []
    run = embedding._run
    monkeypatch.setattr(embedding, "_run", lambda *arguments: seen.append(1) or run(*arguments))
    embed_to_file([folder], model=str(onnx), out=out)
    assert 0 < len(seen) <= 10 - len(before), "what was done is not done again"
    embed_to_file([folder], model=str(onnx), out=tmp_path / "at_once.parquet")
    assert out.read_bytes() == (tmp_path / "at_once.parquet").read_bytes()
    assert (tmp_path / "out.skipped.csv").read_bytes() == (tmp_path / "at_once.skipped.csv").read_bytes()
    assert not partial.exists()


def test_unfinished_work_of_something_else(onnx, tmp_path):
    folder = write_images(tmp_path / "images", 40)
    out = tmp_path / "out.parquet"
    encoder, files = embedding.open_encoder(str(onnx)), open_image_files([folder])
    embedding.embed(files, encoder, tmp_path / "out.parquet.partial", has_thumbnails=False).close()
    other = write_onnx(tmp_path / "other.onnx")
    with pytest.raises(FileExistsError, match=r"out.parquet.partial holds the unfinished .* other model: go on"):
        embed_to_file([folder], model=str(other), out=out)
    (folder / "dog/0001.jpg").unlink()
    with pytest.raises(FileExistsError, match="with other images"):
        embed_to_file([folder], model=str(onnx), out=out)


def test_two_runs_at_once(onnx, images, tmp_path):
    encoder, files = embedding.open_encoder(str(onnx)), open_image_files([images])
    parts = embedding.embed(files, encoder, tmp_path / "out.parquet.partial", has_thumbnails=False)
    with pytest.raises(ValueError, match="another process is working in"):
        embed_to_file([images], model=str(onnx), out=tmp_path / "out.parquet")
    parts.close()
    embed_to_file([images], model=str(onnx), out=tmp_path / "out.parquet")


def test_the_file_does_not_depend_on_how_its_parts_come(onnx, images, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.embed.GROUP_ROWS", 30)
    contents = []
    for rows in (1, 50, 8192):
        monkeypatch.setattr("pipelines.parts.MAX_ROWS", rows)
        out = tmp_path / f"{rows}.parquet"
        embed_to_file([images], model=str(onnx), out=out)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] == contents[2]
    assert pq.ParquetFile(out).num_row_groups == 3


def test_thumbnails():
    for size, expected in [((200, 100), (96, 48)), ((50, 400), (12, 96)), ((8, 8), (8, 8)), ((3000, 1), (96, 1))]:
        jpeg = embedding.make_thumbnail(Image.new("RGB", size, (250, 10, 10)))
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, image.size) == ("JPEG", expected)
            assert np.abs(np.asarray(image, int) - (250, 10, 10)).max() < 10
