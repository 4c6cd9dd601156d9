"""Images of several requests share a batch, and nobody notices."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import SIZE, write_onnx

from serving.batcher import Batcher
from serving.deployment import Deployment, LiveModel, load_file
from serving.image_cost import PixelBudget
from serving.inference import Inference, OverloadedError
from serving.preprocessing import ImageError
from serving.settings import Batching, Limits


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> LiveModel:
    return load_file(write_onnx(tmp_path_factory.mktemp("batcher") / "tiny.onnx"))


def images(*values: int) -> np.ndarray:
    """Return gray images, whose embedding is their value."""
    return np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in values])


def said(prediction) -> list[int]:
    return [round(255 * float(row[0])) for row in prediction.embedding]


def with_batcher(use, runners=1, pixels=10_000, **batching):
    """Return what `use(batcher)` returns, and the sizes of the batches."""
    sizes: list[int] = []

    async def run():
        budget = PixelBudget(pixels)
        batcher = Batcher(Batching(**batching), runners=runners, on_batch=sizes.append, budget=budget)
        try:
            return await asyncio.wait_for(use(batcher), 20)
        finally:
            await batcher.close()

    return asyncio.run(run()), sizes


def test_requests_share_batches_and_get_their_own_answers(live):
    async def use(batcher):
        return await asyncio.gather(*(batcher.run(live, images(*range(n, n + 1 + n % 3))) for n in range(40)))

    answers, sizes = with_batcher(use, max_batch=8)
    assert [said(answer) for answer in answers] == [list(range(n, n + 1 + n % 3)) for n in range(40)]
    assert sum(sizes) == sum(1 + n % 3 for n in range(40))
    assert max(sizes) <= 8 and np.mean(sizes) > 6


def test_a_long_request_is_split(live):
    answer, sizes = with_batcher(lambda batcher: batcher.run(live, images(*range(11))), max_batch=4)
    assert said(answer) == list(range(11)) and sorted(sizes) == [3, 4, 4]


def test_the_budget_of_pixels_is_of_dense_models(live):
    async def use(batcher):
        return await asyncio.gather(*(batcher.run(live, images(n)) for n in range(3)))

    _, sizes = with_batcher(use, pixels=1)
    assert sizes == [3]


def test_idle_runners_share_what_there_is(live):
    async def use(batcher):
        return await asyncio.gather(*(batcher.run(live, images(n)) for n in range(6)))

    answers, sizes = with_batcher(use, runners=2, max_batch=8)
    assert [said(answer) for answer in answers] == [[n] for n in range(6)]
    assert sizes == [3, 3]


def test_one_client_alone_waits_for_nobody(live):
    start = time.monotonic()
    with_batcher(lambda batcher: batcher.run(live, images(1)), max_wait_ms=10_000)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("max_wait_ms", "sizes"), [(10_000, [2]), (20, [1, 1])])
def test_a_batch_waits_for_what_is_being_decoded_up_to_its_deadline(live, max_wait_ms, sizes):
    async def use(batcher):
        batcher.decoding = 1
        first = asyncio.create_task(batcher.run(live, images(1)))
        await asyncio.sleep(0.2)
        batcher.decoding = 0
        return await asyncio.gather(first, batcher.run(live, images(2)))

    answers, actual = with_batcher(use, max_wait_ms=max_wait_ms)
    assert actual == sizes
    assert [said(answer) for answer in answers] == [[1], [2]]


def test_models_do_not_mix_while_one_replaces_the_other(live, tmp_path):
    other = load_file(write_onnx(tmp_path / "other.onnx", bias=(0, 5, 0)))

    async def use(batcher):
        turns = [live, live, other, other, live]
        return await asyncio.gather(*(batcher.run(model, images(7)) for model in turns))

    answers, sizes = with_batcher(use)
    assert [round(float(answer.logits[0, 1] - answer.logits[0, 0])) for answer in answers] == [0, 0, 5, 5, 0]
    assert sizes == [2, 2, 1]


def test_an_image_that_breaks_the_model_fails_alone(tmp_path):
    fragile = load_file(write_onnx(tmp_path / "fragile.onnx", is_fragile=True))

    async def use(batcher):
        requests = (batcher.run(fragile, images(value)) for value in (0, 9, 0))
        return await asyncio.gather(*requests, return_exceptions=True)

    (first, broken, last), _ = with_batcher(use)
    assert said(first) == said(last) == [0]
    assert isinstance(broken, Exception)


def test_nothing_is_computed_for_a_client_that_is_gone(live):
    async def use(batcher):
        batcher.decoding = 1  # holds the batch back
        gone, here = (asyncio.create_task(batcher.run(live, images(value))) for value in (1, 2))
        await asyncio.sleep(0.05)
        gone.cancel()
        batcher.decoding = 0
        batcher.notify()
        return await here

    answer, sizes = with_batcher(use, max_wait_ms=10_000)
    assert (said(answer), sizes) == ([2], [1])


def test_the_queue_is_bounded(live, picture_file):
    async def use(inference):
        waiting = [asyncio.create_task(inference.predict(live, [picture_file] * 2)) for _ in range(2)]
        await asyncio.sleep(0)
        assert inference.pending == 4
        with pytest.raises(OverloadedError, match="4 images are waiting"):
            await inference.predict(live, [picture_file])
        await asyncio.gather(*waiting)
        assert inference.pending == 0
        (prediction,) = await inference.predict(live, [picture_file] * 9)
        return len(prediction.embedding)  # alone, it finds a place

    assert with_inference(use, queue=4) == 9


def test_the_bad_image_is_named_and_leaves_nothing_behind(live, picture_file):
    async def use(inference):
        with pytest.raises(ImageError, match="image 2 of 3: not an image"):
            await inference.predict(live, [picture_file, b"no image", picture_file])
        (prediction,) = await inference.predict(live, [picture_file])
        return inference.pending, len(prediction.embedding)

    assert with_inference(use) == (0, 1)


@pytest.fixture
def picture_file() -> bytes:
    from server_process import picture

    return picture((9, 9, 9))


def with_inference(use, **batching):
    async def run():
        inference = Inference(Deployment(), Batching(**batching), limits=Limits(pixels=1000), on_batch=lambda _: None)
        try:
            return await asyncio.wait_for(use(inference), 20)
        finally:
            await inference.close()

    return asyncio.run(run())


def test_processors_of_a_container(tmp_path: Path):
    from serving.processors import count_processors

    limit = tmp_path / "cpu.max"
    here = count_processors(limit)
    for text, expected in (("50000 100000", 1), ("max 100000", here), ("6400000 100000", here), ("", here)):
        limit.write_text(text)
        assert count_processors(limit) == expected
