"""Class means for a head: against hand-computed numbers and loops, and through ONNX and int8."""

import numpy as np
import onnxruntime
import pytest
import torch

from grpo_rm.export import export_onnx, measure_parity
from grpo_rm.head import PrototypeHead, class_means
from grpo_rm.model import Model, ModelConfig
from grpo_rm.quantization import quantize_onnx

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 1), dtype=np.uint8)


def random_embeddings(count=50, dim=7, num_outputs=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator), torch.arange(count) % num_outputs


def test_class_means_golden():
    """(3, 4) and (0, 2) have the directions (.6, .8) and (0, 1); their mean (.3, .9) has length sqrt(.9)."""
    means = class_means(torch.tensor([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]]), torch.tensor([1, 1, 0]), 2)
    torch.testing.assert_close(means, torch.tensor([[-1.0, 0.0], [0.3 / 0.9**0.5, 0.9 / 0.9**0.5]]))


def test_class_means_are_those_of_loops():
    embeddings, labels = random_embeddings()
    for output, mean in enumerate(class_means(embeddings, labels, 4)):
        total = sum(e.double() / e.double().norm() for e, y in zip(embeddings, labels, strict=True) if y == output)
        torch.testing.assert_close(mean.double(), total / total.norm(), rtol=1e-6, atol=1e-6)


def test_class_means_do_not_depend_on_length_or_order():
    embeddings, labels = random_embeddings()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    scaled = embeddings * torch.linspace(0.1, 10, len(labels)).unsqueeze(-1)
    torch.testing.assert_close(class_means(scaled[order], labels[order], 4), class_means(embeddings, labels, 4))


def test_class_means_ignore_images_without_a_label():
    embeddings, labels = random_embeddings()
    unlabeled = torch.cat([embeddings, torch.full((3, 7), torch.nan)]), torch.cat([labels, torch.full((3,), -1)])
    assert torch.equal(class_means(*unlabeled, 4), class_means(embeddings, labels, 4))


def test_a_class_without_images_is_named():
    embeddings, labels = random_embeddings()
    with pytest.raises(ValueError, match=r"class 4, 5 \(counted from 0\) has no image, expected at least one of each"):
        class_means(embeddings, labels, 6)


def test_logits_are_cosines_over_the_temperature():
    embeddings, labels = random_embeddings()
    head = PrototypeHead(7, 4, 0.1)
    head.set_prototypes(embeddings, labels)
    logits = head(embeddings)
    for row, embedding in zip(logits, embeddings, strict=True):
        for logit, mean in zip(row, class_means(embeddings, labels, 4), strict=True):
            assert logit.item() == pytest.approx(torch.cosine_similarity(embedding, mean, dim=0).item() / 0.1, abs=1e-5)
    assert logits.abs().max() <= 10
    torch.testing.assert_close(head(3 * embeddings), logits)


def test_the_gradient_reaches_the_embedding_alone():
    embeddings, labels = random_embeddings(num_outputs=3)
    head = PrototypeHead(7, 3, 0.5).double()
    head.set_prototypes(embeddings, labels)
    assert list(head.parameters()) == []
    assert torch.autograd.gradcheck(head, embeddings[:4].double().requires_grad_())


def test_images_in_training_can_follow_the_means():
    """Steps on the cross-entropy alone separate two classes that begin nearly alike."""
    torch.manual_seed(0)
    embeddings = (torch.randn(1, 8) + 0.1 * torch.randn(20, 8)).requires_grad_()
    labels, head = torch.arange(20) % 2, PrototypeHead(8, 2, 0.2)
    optimizer = torch.optim.SGD([embeddings], lr=20.0)
    for _ in range(60):
        head.set_prototypes(embeddings.detach(), labels)
        loss = torch.nn.functional.cross_entropy(head(embeddings), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(embeddings).argmax(-1) == labels).all()
    assert loss < 0.3


SMALL = {
    "test_resnet": {"channels": [8, 8, 8, 8], "stem_width": 8, "layers": [1, 1, 1, 1]},
    "test_vit": {"depth": 2, "embed_dim": 16},
}


@pytest.mark.parametrize("encoder", SMALL)
def test_onnx_and_int8_say_what_torch_says(encoder, tmp_path):
    torch.manual_seed(0)
    classes = ["a", "b", "c"]
    config = ModelConfig(encoder, 1, 32, 1.0, "bicubic", [0.5], [0.25], classes, SMALL[encoder], head="prototypes")
    model = Model(config).eval()
    model.head.set_prototypes(torch.randn(9, model.head.prototypes.shape[1]), torch.arange(9) % 3)
    full, int8 = tmp_path / "full.onnx", tmp_path / "int8.onnx"
    export_onnx(model, full, opset=20, metadata={})
    assert all(parity.max_abs_error < 1e-4 for parity in measure_parity(model, full, IMAGES))
    quantize_onnx(full, int8, IMAGES)
    exact, rounded = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], {"images": IMAGES})[0]
        for path in (full, int8)
    )
    assert np.ptp(exact) > 0.1
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.98
