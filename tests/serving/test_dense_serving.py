"""A real dense model, from torch to its masks over a socket: images of their own size, and what is too much."""

import asyncio
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from server_process import form, picture, serving
from tiny_onnx import describe, describe_dense, write_onnx

from grpo_rm.config import Export
from grpo_rm.dense import places
from grpo_rm.dense_model import DenseConfig, DenseModel
from grpo_rm.dense_sites import upsample
from pipelines import embedding, export
from pipelines.embed import embed_to_file
from pipelines.onnx_answers import answer_pixels
from pipelines.onnx_model import OnnxModel as StoredModel
from pipelines.preparation.shards import ShardRow, write_shard
from serving import masks
from serving.batcher import Batcher
from serving.deployment import load_file
from serving.image_cost import PixelBudget
from serving.model import OnnxModel
from serving.selftest import check_self_test
from serving.settings import Batching

RNG = np.random.default_rng(0)
SIZES = [(45, 60), (1, 33), (64, 32)]
IMAGES = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = [encode(image) for image in IMAGES]


@pytest.fixture(scope="module")
def model() -> DenseModel:
    torch.manual_seed(0)
    config = DenseConfig(
        encoder="test_resnet",
        channels=3,
        image_size=32,
        interpolation="bicubic",
        mean=[0.5] * 3,
        std=[0.2] * 3,
        classes=["sky", "road", "car"],
        strides=[4, 8, 16, 32],
        encoder_args={"channels": [8, 8, 8, 8], "stem_width": 8, "layers": [1, 1, 1, 1]},
        head="decoder",
        width=8,
    )
    return DenseModel(config).eval()


@pytest.fixture(scope="module")
def workplace(model, tmp_path_factory):
    """A folder in which stage export has run, on the images of one size."""
    root = tmp_path_factory.mktemp("dense")
    (root / "models/finetune/grpo_rm").mkdir(parents=True)
    (root / "models/finetune/grpo_rm/model.safetensors").write_bytes(b"weights")
    (root / "models/finetune/grpo_rm/training.json").write_text(json.dumps({"data": "0.dir"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_test_split(root / "data/prepared", [FILES[0], FILES[1], FILES[0]])
        limits = Export(opset=20, max_abs_error=1e-4, min_cosine=0.9999, int8=False)
        images, report = export.export_model(model, limits, window=None)
    assert images.shape == (2, 45, 60, 3), "those of the first one's size"
    assert {"1 x 45 x 60", "3 x 23 x 31"} < set(report["parity"]) and set(report["latency_ms"]) == {"1", "4"}
    return root


def write_test_split(prepared, files):
    """Write prepared data; nothing here looks at the masks."""
    rows = [ShardRow(str(number), file, 0, encode(np.zeros((1, 1), np.uint8))) for number, file in enumerate(files)]
    (prepared / "test").mkdir(parents=True)
    write_shard(prepared / "test/00000.parquet", rows, classes=["sky", "road", "car"], key="key")
    (prepared / "dataset.json").write_text(json.dumps({"mask_values": [0, 1, 2], "void_index": None}))


@pytest.fixture(scope="module")
def onnx(workplace):
    return workplace / "models/onnx/encoder.onnx"


@torch.inference_mode()
def truth(model, image):
    """What torch says: the embedding, and the logits of every pixel."""
    embedding, logits = model(torch.from_numpy(image)[None])
    return embedding.mean(dim=(2, 3))[0].numpy(), upsample(logits, image.shape[:2], model.stride)[0].numpy()


def assert_is_argmax(mask, logits):
    """The mask is the argmax, save where two classes are equal to rounding."""
    assert mask.shape == logits.shape[1:]
    chosen = np.take_along_axis(logits, mask[None].astype(np.int64), 0)[0]
    assert (logits.max(0) - chosen).max() < 1e-4 and (mask == logits.argmax(0)).mean() > 0.999


@pytest.mark.parametrize("stride", [1, 2, 4, 7, 14, 32])
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (64, 32)])
def test_pixels_are_those_of_torch(stride, size):
    logits = RNG.normal(size=(5, *places(size, stride))).astype(np.float32)
    expected = upsample(torch.from_numpy(logits)[None], size, stride)[0].numpy()
    assert_is_argmax(masks.class_indices(logits, size, stride), expected)


def test_blocks_of_rows_change_nothing(monkeypatch):
    logits = RNG.normal(size=(300, 10, 6)).astype(np.float32)
    whole = masks.class_indices(logits, (37, 23), 4)
    assert_is_argmax(whole, upsample(torch.from_numpy(logits)[None], (37, 23), 4)[0].numpy())
    assert whole.dtype == np.uint16
    monkeypatch.setattr(masks, "BLOCK", 300 * 23 * 2)
    assert (masks.class_indices(logits, (37, 23), 4) == whole).all()


def test_what_is_shrunk_is_brought_back():
    assert masks.fitted((30, 20), None) == (30, 20) and masks.fitted((30, 20), 30) == (30, 20)
    assert masks.fitted((60, 20), 30) == (30, 10) and masks.fitted((1, 1000), 30) == (1, 30)
    assert masks.resize_nearest(np.array([[1, 2], [3, 4]]), (4, 3)).tolist() == [
        [1, 2, 2],
        [1, 2, 2],
        [3, 4, 4],
        [3, 4, 4],
    ]


def test_the_file_describes_itself(onnx, model):
    live = load_file(onnx).onnx
    expected = {"channels": 3, "interpolation": "bicubic", "image_size": 32, "stride": 4, "fixed_size": None}
    expected["window"] = None
    assert live.preprocessing == expected and live.task == "segmentation"
    assert live.shapes == {"images": (-1, -1, 3), "embedding": (8,), "logits": (3, -1, -1)}
    check_self_test(live, onnx.with_name("self_test.npz"))
    stored = StoredModel(onnx)
    for file, image in zip(FILES, IMAGES, strict=True):
        logits = answer_pixels(stored, file, window=None)[0].numpy()
        np.testing.assert_allclose(logits, truth(model, image)[1], atol=1e-4)


def test_the_server_says_what_torch_says(onnx, model, tmp_path):
    with serving(onnx, tmp_path, GRPO_RM_MAX_DENSE_PIXELS="6000") as server:
        body, headers = form(*FILES)
        for image, file in zip(IMAGES, FILES, strict=True):
            png = server.request("/v1/segment", file, {"Accept": "image/png"}).content
            assert_is_argmax(np.asarray(Image.open(io.BytesIO(png))), truth(model, image)[1])
        answers = server.request("/v1/segment", body, headers | {"Accept": "application/x-npy"}).content["masks"]
        assert [sum(one["share"] for one in answer["classes"]) for answer in answers] == pytest.approx([1, 1, 1])
        body, headers = form(FILES[0], FILES[0])
        array = np.load(
            io.BytesIO(server.request("/v1/segment", body, headers | {"Accept": "application/x-npy"}).content)
        )
        assert array.shape == (2, 45, 60)
        embeddings = server.request("/v1/embed", *form(*FILES)).content["embeddings"]
        np.testing.assert_allclose(embeddings, [truth(model, image)[0] for image in IMAGES], atol=1e-4)
        check_limits(server)
        check_open_inference(server, model)


def check_limits(server):
    for body, headers in (form(picture((0, 0, 0), size=(100, 61))), form(*FILES[:1] * 3)):
        answer = server.request("/v1/segment", body, headers)
        assert answer.status == 400
        assert "pixels, expected at most 6,000 in all images of a request to a dense model" in answer.content["detail"]
        assert "GRPO_RM_MAX_DENSE_PIXELS" in answer.content["detail"]


def check_open_inference(server, model):
    name = "/v2/models/encoder.onnx"
    described = server.request(name).content
    assert described["inputs"][0]["shape"] == [-1, -1, -1, 3]
    assert described["outputs"][1]["shape"] == [-1, 3, -1, -1]

    def infer(shape, data):
        tensor = {"name": "images", "datatype": "UINT8", "shape": shape, "data": data}
        return server.request(f"{name}/infer", json.dumps({"inputs": [tensor]}).encode())

    image = IMAGES[1]
    answer = infer([1, *image.shape], image.ravel().tolist())
    np.testing.assert_allclose(answer.content["outputs"][0]["data"], truth(model, image)[0], atol=1e-4)
    assert answer.content["outputs"][1]["shape"] == [1, 3, 1, 9]
    answer = infer([1, 0, 5, 3], [])
    assert answer.status == 400 and "expected [N, any, any, 3]" in answer.content["error"]
    answer = infer([1, 100, 61, 3], [0] * 18_300)
    assert answer.status == 400 and "expected at most 6,000" in answer.content["error"]


def test_a_model_of_one_size_gets_larger_images_shrunk(tmp_path):
    """Left red, right blue, four times as wide as the model takes."""
    image = np.zeros((12, 32, 3), np.uint8)
    image[:, :16, 0] = image[:, 16:, 2] = 255
    path = write_onnx(tmp_path / "fixed.onnx", is_dense=True, fixed_size=8)
    assert OnnxModel(path).pixels(encode(image)).shape == (3, 8, 3)
    assert OnnxModel(path).pixels(picture((0, 0, 0), size=(5, 3))).shape == (3, 5, 3), "a smaller one stays"
    with serving(path, tmp_path) as server:
        png = server.request("/v1/segment", encode(image), {"Accept": "image/png"}).content
        assert (np.asarray(Image.open(io.BytesIO(png))) == np.where(np.arange(32) < 16, 0, 2)).all()
        assert np.asarray(Image.open(io.BytesIO(png))).shape == (12, 32)
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 9, 1, 3], "data": [0] * 27}
        answer = server.request("/v2/models/fixed.onnx/infer", json.dumps({"inputs": [tensor]}).encode())
        assert answer.status == 400 and "expected at most 8 x 8: shrink them" in answer.content["error"]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (72, [3, 2, 1]),
        (71, [2, 1, 2, 1]),  # one pixel too few for three
        (23, [1] * 6),  # what is larger than all of it is run alone
    ],
)
def test_a_batch_is_of_one_size_and_within_the_budget(budget, expected, tmp_path):
    live, sizes = load_file(write_onnx(tmp_path / "dense.onnx", is_dense=True)), []
    images = [(4, 6)] * 3 + [(6, 4)] * 2 + [(4, 6)]

    async def use():
        batcher = Batcher(Batching(), runners=1, on_batch=sizes.append, budget=PixelBudget(budget))
        batches = [np.full((1, *size, 3), 255, np.uint8) for size in images]
        try:
            return await asyncio.gather(*(batcher.run(live, batch) for batch in batches))
        finally:
            await batcher.close()

    answers = asyncio.run(use())
    assert sizes == expected
    assert [answer.logits.shape[2:] for answer in answers] == [(2, 3)] * 3 + [(3, 2)] * 2 + [(2, 3)]


def test_a_file_whose_stride_is_another_one_is_refused(tmp_path):
    preprocessing = json.loads(describe_dense()["grpo_rm.preprocessing"]) | {"stride": 4}
    metadata = describe() | {"grpo_rm.task": "segmentation", "grpo_rm.preprocessing": json.dumps(preprocessing)}
    path = write_onnx(tmp_path / "wrong.onnx", is_dense=True, metadata=metadata)
    with pytest.raises(ValueError, match=r"logits \(1, 3, 4, 4\), expected \(1, D\) and \(1, 3, 2, 2\)"):
        OnnxModel(path)


def test_embeddings_of_images_of_all_sizes(onnx, model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, file in enumerate(FILES):
        (folder / f"{number}.png").write_bytes(file)
    embed_to_file([folder], model=str(onnx), out=tmp_path / "embeddings.parquet")
    embeddings = embedding.to_array(pq.read_table(tmp_path / "embeddings.parquet")["embedding"])
    np.testing.assert_allclose(embeddings, [truth(model, image)[0] for image in IMAGES], atol=1e-4)
