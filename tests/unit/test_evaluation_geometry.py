"""Alignment, uniformity and effective rank against loops, goldens and their bounds."""

import math

import pytest
import torch
import torch.nn.functional as F

from grpo_rm.evaluation.geometry import alignment, effective_rank, uniformity


def points(seed, num_images=40, dimensions=6):
    return torch.randn(num_images, dimensions, generator=torch.Generator().manual_seed(seed))


def simplex(num_points):
    """The corners of a regular simplex around 0: num_points unit vectors with cosine -1 / (num_points - 1)."""
    corners = torch.eye(num_points, dtype=torch.float64)
    return F.normalize(corners - corners.mean(dim=0), dim=1)


def squared_distance(x, y):
    x, y = [a / math.hypot(*x) for a in x], [b / math.hypot(*y) for b in y]
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def pairs(count):
    return [(i, j) for i in range(count) for j in range(i)]


def test_alignment_golden():
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [5.0, 5.0]])
    # class 7: right angle 2, straight angle 4, right angle 2; the single image of class 3 forms no pair
    assert alignment(embeddings, torch.tensor([7, 7, 7, 3])) == pytest.approx(8 / 3)


def test_uniformity_golden():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert uniformity(embeddings) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


@pytest.mark.parametrize("seed", range(3))
def test_alignment_naive_reference(seed):
    embeddings = points(seed)
    labels = torch.randint(5, (40,), generator=torch.Generator().manual_seed(seed))
    rows = embeddings.double().tolist()
    distances = [squared_distance(rows[i], rows[j]) for i, j in pairs(40) if labels[i] == labels[j]]
    assert alignment(embeddings, labels) == pytest.approx(sum(distances) / len(distances))


@pytest.mark.parametrize("block_size", [1, 7, 39, 40, 512])
def test_uniformity_naive_reference(block_size):
    embeddings = points(3)
    rows = embeddings.double().tolist()
    energies = [math.exp(-2 * squared_distance(rows[i], rows[j])) for i, j in pairs(40)]
    assert uniformity(embeddings, block_size=block_size) == pytest.approx(math.log(sum(energies) / len(energies)))


@pytest.mark.parametrize("num_points", [2, 3, 5, 20])
def test_uniformity_of_the_simplex_is_the_floor(num_points):
    assert uniformity(simplex(num_points)) == pytest.approx(-4 * num_points / (num_points - 1))


@pytest.mark.parametrize("seed", range(20))
def test_uniformity_stays_above_the_floor(seed):
    num_images = 2 + seed
    embeddings = points(seed, num_images, dimensions=1 + seed % 7)
    assert -4 * num_images / (num_images - 1) - 1e-9 <= uniformity(embeddings) <= 1e-12
    disturbed = simplex(num_images) + 0.05 * points(seed, num_images, num_images).double()
    assert uniformity(disturbed) > -4 * num_images / (num_images - 1)


def test_collapse():
    embeddings = torch.full((30, 4), 0.3)
    assert alignment(embeddings, torch.zeros(30, dtype=torch.int64)) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(embeddings) == pytest.approx(0.0, abs=1e-12)
    assert effective_rank(embeddings) == 0.0
    assert effective_rank(embeddings[:1]) == 0.0


def test_zero_embedding_is_not_nan():
    embeddings = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert alignment(embeddings, torch.tensor([0, 0])) == pytest.approx(1.0)
    assert uniformity(embeddings) == pytest.approx(-2.0)


def test_norm_rotation_and_order_do_not_matter():
    embeddings, labels = points(4), torch.arange(40) % 3
    rotation = torch.linalg.qr(points(5, 6)).Q
    order = torch.randperm(40)
    moved = ((embeddings * torch.rand(40, 1).add(0.1)) @ rotation)[order]
    assert alignment(moved, labels[order]) == pytest.approx(alignment(embeddings, labels), rel=1e-5)
    assert uniformity(moved) == pytest.approx(uniformity(embeddings), rel=1e-5)


def test_effective_rank_golden():
    cross = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 10  # singular values in the ratio 3 to 1
    assert effective_rank(cross) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    line = torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0, 3.0]))
    assert effective_rank(line) == pytest.approx(1.0)
    assert effective_rank(simplex(6)) == pytest.approx(5.0)


@pytest.mark.parametrize("shape", [(40, 6), (5, 12)])
def test_effective_rank_reference_and_bounds(shape):
    embeddings = points(6, *shape)
    centred = (embeddings.double() - embeddings.double().mean(dim=0)).numpy()
    shares = [max(value, 0.0) ** 0.5 for value in torch.linalg.eigvalsh(torch.from_numpy(centred @ centred.T)).tolist()]
    shares = [value / sum(shares) for value in shares if value > 1e-6]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(embeddings) == pytest.approx(expected, rel=1e-5)
    assert 1.0 <= effective_rank(embeddings) <= min(shape[0] - 1, shape[1])


def test_effective_rank_ignores_shift_scale_and_rotation():
    embeddings = points(7)
    rotation = torch.linalg.qr(points(8, 6)).Q
    assert effective_rank(-3 * embeddings @ rotation + 2) == pytest.approx(effective_rank(embeddings), rel=1e-5)


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="no class with two"):
        alignment(points(0, 3), torch.arange(3))
    with pytest.raises(ValueError, match="for 40 images"):
        alignment(points(0), torch.arange(3))
    with pytest.raises(ValueError, match="at least 2 image"):
        uniformity(points(0, 1))
    with pytest.raises(ValueError, match="at least 1 image"):
        effective_rank(torch.zeros(0, 3))
    damaged = points(0)
    damaged[3, 2] = math.inf
    for measure in (uniformity, effective_rank, lambda x: alignment(x, torch.zeros(40, dtype=torch.int64))):
        with pytest.raises(ValueError, match="1 of 40 images"):
            measure(damaged)
