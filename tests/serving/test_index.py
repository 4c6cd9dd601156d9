"""The index: order of neighbors, what is refused, replacement under a live model, and /v1/similar over a socket."""

import base64
import gc
import io
import json
import shutil
import sqlite3
import threading

import faiss
import numpy as np
import pytest
from PIL import Image
from server_process import picture, serving
from test_embed import command, write_images
from tiny_onnx import describe, write_onnx

from pipelines.embed import embed_to_file
from pipelines.index import index_embeddings, index_images
from serving.deployment import load_file
from serving.index import Description, Index, NoIndexError
from serving.indexes import Indexes
from serving.model import OnnxModel

BLACK = picture((0, 0, 0))
DIRECTORY = "5" * 12  # of the tiny model


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("images"), 60, size=(3, 2))  # small: so they differ
    (folder / "black.png").write_bytes(picture((0, 0, 0)))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, onnx, images):
    out = tmp_path_factory.mktemp("indexes")
    index_images([images], model=str(onnx), out=out, has_thumbnails=True)
    return out


@pytest.fixture
def out(built, tmp_path):
    """A copy, to damage at will."""
    return shutil.copytree(built, tmp_path / "indexes")


def edit(out, **changes):
    path = out / DIRECTORY / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def naive_neighbors(images, onnx, query, k):
    """Cosines one by one, sorted."""
    model = OnnxModel(onnx)
    (wanted,) = model.predict([query]).embedding
    found = []
    for path in sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*")):
        (other,) = model.predict([(images / path).read_bytes()]).embedding
        norms = np.linalg.norm(wanted) * np.linalg.norm(other)
        found.append((float(wanted @ other / norms) if norms else 0.0, path))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))[:k]


def test_neighbors_are_those_of_a_naive_search(built, images, onnx):
    index = Index(built / DIRECTORY)
    for query in (picture((200, 100, 50)), picture((3, 2, 250)), (images / "cat/0004.png").read_bytes()):
        for k in (1, 7, 100):
            (neighbors,) = index.search(OnnxModel(onnx).predict([query]).embedding, k=k, has_thumbnails=False)
            expected = naive_neighbors(images, onnx, query, k)
            assert [each.similarity for each in neighbors] == pytest.approx(
                [cosine for cosine, _ in expected], abs=1e-6
            )
            assert [each.id for each in neighbors] == [path for _, path in expected]
    assert neighbors[0].id == "cat/0004.png" and neighbors[0].similarity <= 1
    assert {each.id: each.label for each in neighbors}["black.png"] is None
    assert neighbors[0].label == "cat" and neighbors[0].thumbnail is None


def test_many_queries_at_once_and_from_threads(built):
    index = Index(built / DIRECTORY)
    embedding = np.random.default_rng(0).random((30, 3), dtype=np.float32)
    one_by_one = [index.search(row[None], k=5, has_thumbnails=True)[0] for row in embedding]
    answers = {}

    def search(number):
        answers[number] = index.search(embedding, k=5, has_thumbnails=True)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in answers.values():
        for neighbors, expected in zip(found, one_by_one, strict=True):
            assert [(each.id, each.thumbnail) for each in neighbors] == [(each.id, each.thumbnail) for each in expected]


def test_equal_ones_are_in_the_order_of_the_index(onnx, tmp_path):
    (tmp_path / "images").mkdir()
    for name in "dbca":
        (tmp_path / f"images/{name}.png").write_bytes(picture((9, 9, 9)))
    index_images([tmp_path / "images"], model=str(onnx), out=tmp_path, has_thumbnails=False)
    (neighbors,) = Index(tmp_path / DIRECTORY).search(np.ones((1, 3), np.float32), k=4, has_thumbnails=True)
    assert [each.id for each in neighbors] == ["a.png", "b.png", "c.png", "d.png"]
    assert [each.thumbnail for each in neighbors] == [None] * 4
    assert [each.similarity for each in neighbors] == pytest.approx([1] * 4)


def test_an_index_of_embeddings_is_the_same(built, images, onnx, tmp_path):
    embed_to_file([images], model=str(onnx), out=tmp_path / "embeddings.parquet")
    index_embeddings(tmp_path / "embeddings.parquet", model=None, out=tmp_path)
    index_embeddings(tmp_path / "embeddings.parquet", model=str(onnx), out=tmp_path)
    same, other = Index(built / DIRECTORY), Index(tmp_path / DIRECTORY)
    assert same.description.vectors_sha256 == other.description.vectors_sha256
    assert len(list((tmp_path / DIRECTORY).iterdir())) == 3, "the former index is removed"
    query = np.array([[3, 2, 1]], np.float32)
    assert same.search(query, k=9, has_thumbnails=False) == other.search(query, k=9, has_thumbnails=False)
    another = write_onnx(tmp_path / "another.onnx", metadata=describe() | {"grpo_rm.model_sha256": "6" * 64})
    with pytest.raises(ValueError, match=r"has embeddings of tiny.onnx .* \(model_sha256 555555555555...\), but"):
        index_embeddings(tmp_path / "embeddings.parquet", model=str(another), out=tmp_path)


def test_other_indexes_of_faiss(out):
    path = out / DIRECTORY / json.loads((out / DIRECTORY / "index.json").read_text())["vectors"]
    vectors = faiss.read_index(str(path)).reconstruct_n(0, 61)
    approximate = faiss.IndexHNSWFlat(3, 8, faiss.METRIC_INNER_PRODUCT)
    approximate.add(vectors)
    faiss.write_index(approximate, str(path))
    edit(out, vectors_sha256="")
    (neighbors,) = Index(out / DIRECTORY).search(vectors[5:6], k=3, has_thumbnails=False)
    assert neighbors[0].similarity == pytest.approx(1)
    for bad, reason in [(faiss.IndexFlatL2(3), "not an index by inner product"), (faiss.IndexFlatIP(3), "normalized")]:
        bad.add(vectors * 2)
        faiss.write_index(bad, str(path))
        with pytest.raises(ValueError, match=reason):
            Index(out / DIRECTORY)


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garbage(path):
    path.write_bytes(b"garbage")


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("vectors", truncate, "the SHA-256 of .*faiss is .*, but index.json says"),
        ("vectors", flip, "the SHA-256 of .*faiss is .*, but index.json says"),
        ("items", garbage, "sqlite does not fit the index: file is not a database"),
        ("vectors", lambda path: path.unlink(), "No such file or directory: .*faiss"),
        ("items", lambda path: path.unlink(), "No such file or directory: .*sqlite"),
    ],
)
def test_damaged_files_are_a_reason(out, onnx, name, damage, reason):
    damage(out / DIRECTORY / json.loads((out / DIRECTORY / "index.json").read_text())[name])
    with pytest.raises(NoIndexError, match=f"the index in .* cannot be used: .*{reason}.*Build it with `grpo-rm index"):
        Indexes(out, "tiny.onnx").find(load_file(onnx))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "its format is 2, expected 1"),
        ({"count": 0}, "its count is 0"),
        ({"count": "many"}, "its count is 'many'"),
        ({"count": 60}, "61 embeddings of dimension 3, but index.json says 60 of 3"),
        ({"dimension": 4}, "61 embeddings of dimension 3, but index.json says 61 of 4"),
        ({"model_sha256": "6" * 64}, "it is of the model 666"),
    ],
)
def test_descriptions_that_contradict(out, onnx, changes, reason):
    edit(out, **changes)
    with pytest.raises(NoIndexError, match=reason):
        Indexes(out, "tiny.onnx").find(load_file(onnx))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}', "\x00"])
def test_a_description_that_is_none(out, onnx, text):
    (out / DIRECTORY / "index.json").write_text(text)
    with pytest.raises(NoIndexError, match=r"index.json is no description of an index"):
        Indexes(out, "tiny.onnx").find(load_file(onnx))


def test_faiss_files_without_a_checksum(out, onnx):
    path = out / DIRECTORY / json.loads((out / DIRECTORY / "index.json").read_text())["vectors"]
    edit(out, vectors_sha256="")
    content = path.read_bytes()
    for damaged in (b"", b"garbage", content[:30], content[:-5]):
        path.write_bytes(damaged)
        edit(out, created=str(len(damaged)))
        with pytest.raises(NoIndexError, match="faiss cannot read"):
            Indexes(out, "tiny.onnx").find(load_file(onnx))


def test_items_damaged_under_way(out):
    index = Index(out / DIRECTORY)
    index._items.close()
    index._items = sqlite3.connect(":memory:", check_same_thread=False)
    with pytest.raises(NoIndexError, match="is damaged"):
        index.search(np.ones((1, 3), np.float32), k=1, has_thumbnails=False)
    index._items.close()
    with pytest.raises(NoIndexError, match="embeddings of dimension 3, the model's have 4"):
        index.search(np.ones((1, 4), np.float32), k=1, has_thumbnails=False)


def test_no_index(built, onnx, tmp_path):
    live = load_file(onnx)
    with pytest.raises(NoIndexError, match=r"the server has no index: .*--model m --out indexes.* with --index"):
        Indexes(None, "m").find(live)
    with pytest.raises(NoIndexError, match=r"no index of tiny.onnx version .* in .*, which has none. Build it with"):
        Indexes(tmp_path, "m").find(live)
    another = write_onnx(tmp_path / "another.onnx", metadata=describe() | {"grpo_rm.model_sha256": "6" * 64})
    with pytest.raises(NoIndexError, match=rf"\(model_sha256 666666666666...\) in .*, which has {DIRECTORY}"):
        Indexes(built, "m").find(load_file(another))


def test_a_newer_index_is_loaded_and_a_bad_one_is_not(out, onnx, images, caplog):
    live, indexes = load_file(onnx), Indexes(out, "m")
    first = indexes.find(live)
    assert indexes.find(live) is first
    index_images([images], model=str(onnx), out=out, has_thumbnails=False)
    query = np.ones((1, 3), np.float32)
    assert first.search(query, k=1, has_thumbnails=True)[0][0].thumbnail, "who has it goes on with it"
    second = indexes.find(live)
    assert second is not first and indexes.find(live) is second
    assert second.search(query, k=1, has_thumbnails=True)[0][0].thumbnail is None
    edit(out, format=7)
    for _ in range(3):
        assert indexes.find(live) is second
    assert caplog.text.count("its format is 7, expected 1") == 1
    (out / DIRECTORY / "index.json").unlink()
    with pytest.raises(NoIndexError, match=r"there is no index of tiny.onnx"):
        indexes.find(live)


def test_an_index_for_the_next_model_beside_it(out, onnx, images, tmp_path):
    another = write_onnx(tmp_path / "another.onnx", metadata=describe() | {"grpo_rm.model_sha256": "6" * 64})
    index_images([images], model=str(another), out=out, has_thumbnails=False)
    indexes, lives = Indexes(out, "m"), [load_file(onnx), load_file(another)]
    found = [indexes.find(live) for live in lives]
    assert [index.description.model_sha256[0] for index in found] == ["5", "6"]
    assert indexes.find(lives[0]) is found[0], "while a request has it"
    del found
    gc.collect()
    assert [sha256[0] for sha256 in indexes._used] == ["6"], "else one is in memory, the latest"


def test_the_description_goes_to_json_and_back(built):
    content = json.loads((built / DIRECTORY / "index.json").read_text())
    assert json.loads(Description(**content).to_json()) == content
    assert content["model_sha256"] == "5" * 64 and content["count"] == 61 and content["dimension"] == 3


def test_similar_over_a_socket(built, images, onnx, tmp_path):
    with serving(onnx, tmp_path, GRPO_RM_INDEX=str(built)) as server:
        query = (images / "dog/0001.jpg").read_bytes()
        answer = server.request("/v1/similar?k=3&thumbnails=true", query)
        assert answer.status == 200
        assert answer.content["model"]["name"] == answer.headers["x-model-name"] == "tiny.onnx"
        (neighbors,) = answer.content["neighbors"]
        assert [each["id"] for each in neighbors] == [path for _, path in naive_neighbors(images, onnx, query, 3)]
        assert neighbors[0]["id"] == "dog/0001.jpg" and neighbors[0]["label"] == "dog"
        assert neighbors[0]["similarity"] == pytest.approx(1, abs=1e-6)
        start, encoded = neighbors[0]["thumbnail"].split(",")
        assert start == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            assert image.size == (2, 3)
        (neighbors,) = server.request("/v1/similar", query).content["neighbors"]
        assert len(neighbors) == 10 and neighbors[0]["thumbnail"] is None
        for wrong in ("k=0", "k=101", "k=x", "thumbnails=5"):
            assert server.request(f"/v1/similar?{wrong}", query).status == 422
        assert server.request("/v1/similar", b"no image").status == 400
        form = b"".join(
            b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n%s\r\n' % file
            for file in (query, BLACK)
        )
        answer = server.request(
            "/v1/similar?k=1", form + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert [neighbors[0]["similarity"] for neighbors in answer.content["neighbors"]] == pytest.approx([1, 0])
        assert "Traceback" not in server.log.read_text()
        assert server.end() == 0


def test_similar_without_an_index(onnx, tmp_path):
    with serving(onnx, tmp_path) as server:
        answer = server.request("/v1/similar", picture((1, 2, 3)))
        assert answer.status == 404 and answer.headers["x-model-name"] == "tiny.onnx"
        assert "start the server with --index indexes (GRPO_RM_INDEX)" in answer.content["detail"]
        assert "Traceback" not in server.log.read_text()


def test_the_command_builds_what_the_server_uses(images, onnx, tmp_path):
    done = command("index", images, "--model", onnx, "--out", "indexes", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == f"61 embeddings of dimension 3 -> indexes/{DIRECTORY}\n", done.stderr
    assert Index(tmp_path / "indexes" / DIRECTORY).description.sources == [str(images)]
