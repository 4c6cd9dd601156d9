"""Sites: what each counts, and what is left of those that do not count."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.sites import Sites, clear_void, site_count, site_images, site_rows, site_weights, valid_sites

AGGREGATIONS = ("per_image", "per_site", "constant")
NAN = float("nan")


def naive_weights(valid, aggregation):
    """Loops over images and sites, which are nested lists of bool here."""
    images = [sum(row) for row in valid]
    count = {
        "per_image": sum(total > 0 for total in images),
        "per_site": sum(images),
        "constant": sum(len(row) for row in valid),
    }[aggregation]
    return [
        [(1 / (total if aggregation == "per_image" else 1) / count if is_valid else 0.0) for is_valid in row]
        for row, total in zip(valid, images, strict=True)
    ]


def test_golden_of_the_three_aggregations():
    """Two images of three sites, of which two and one are valid."""
    valid = torch.tensor([[True, True, False], [False, True, False]])
    goldens = {
        "per_image": [[1 / 4, 1 / 4, 0], [0, 1 / 2, 0]],
        "per_site": [[1 / 3, 1 / 3, 0], [0, 1 / 3, 0]],
        "constant": [[1 / 6, 1 / 6, 0], [0, 1 / 6, 0]],
    }
    for aggregation, golden in goldens.items():
        weights = site_weights(valid, aggregation)
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, torch.tensor(golden))


def test_with_one_site_an_image_all_valid_the_three_are_equal():
    for aggregation in AGGREGATIONS:
        assert site_weights(torch.ones(4, dtype=torch.bool), aggregation).tolist() == [0.25] * 4


@settings(max_examples=40)
@given(
    valid=st.integers(1, 5).flatmap(
        lambda sites: st.lists(st.lists(st.booleans(), min_size=sites, max_size=sites), min_size=1, max_size=5)
    ),
    cut=st.integers(0, 5),
    aggregation=st.sampled_from(AGGREGATIONS),
)
def test_weights_add_up_to_one_and_parts_to_the_whole(valid, cut, aggregation):
    mask = torch.tensor(valid)
    weights = site_weights(mask, aggregation)
    if mask.any():
        torch.testing.assert_close(weights, torch.tensor(naive_weights(valid, aggregation)))
        if aggregation != "constant" or mask.all():
            assert weights.sum().item() == pytest.approx(1)
    else:
        assert weights.abs().sum() == 0
    parts = [part for part in (mask[:cut], mask[cut:]) if len(part)]
    count = sum(site_count(part, aggregation) for part in parts)
    assert count == site_count(mask, aggregation)
    assert torch.equal(torch.cat([site_weights(part, aggregation, count=count) for part in parts]), weights)


def test_a_dense_mask_counts_as_its_flattened_one():
    valid = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    for aggregation in AGGREGATIONS:
        torch.testing.assert_close(
            site_weights(valid, aggregation), site_weights(valid.flatten(1), aggregation).view(3, 4, 5)
        )


def test_site_images():
    """In the order of the rows: as if the image's number were its label everywhere."""
    assert site_images(torch.ones(3)).tolist() == [0, 1, 2]
    numbers = torch.arange(3).view(3, 1, 1).expand(3, 2, 4)
    rows = site_rows(Sites(torch.zeros(3, 5, 2, 4), numbers, torch.ones(3, 2, 4)))
    assert torch.equal(site_images(torch.ones(3, 2, 4)), rows.targets)


def test_valid_sites():
    assert valid_sites(torch.tensor([[-1, 0], [2, -100]])).tolist() == [[False, True], [True, False]]
    members = torch.tensor([[[True, False], [False, False]]])  # an image of two outputs and two sites
    assert valid_sites(members).tolist() == [[True, False]]


def test_an_unknown_aggregation():
    with pytest.raises(ValueError, match='aggregation is \'mean\', expected "per_image", "per_site" or "constant"'):
        site_weights(torch.ones(2, dtype=torch.bool), "mean")


def test_rows_of_a_dense_task_are_its_pixels():
    logits = torch.randn(2, 3, 4, 5)
    targets = torch.randint(3, (2, 4, 5))
    weights = torch.rand(2, 4, 5) + 0.1
    rows = site_rows(Sites(logits, targets, weights, 2 * logits, 3 * logits))
    site = (1 * 4 + 2) * 5 + 3
    assert torch.equal(rows.logits[site], logits[1, :, 2, 3])
    assert torch.equal(rows.old_logits[site], 2 * logits[1, :, 2, 3])
    assert torch.equal(rows.reference_logits[site], 3 * logits[1, :, 2, 3])
    assert rows.targets[site] == targets[1, 2, 3]
    assert rows.weights[site] == weights[1, 2, 3]
    members = torch.rand(2, 3, 4, 5) > 0.5
    assert torch.equal(site_rows(Sites(logits, members, weights)).targets[site], members[1, :, 2, 3])


@pytest.mark.parametrize("void", [-1, -100, 255])
def test_nothing_is_left_of_a_void_site(void):
    logits = torch.tensor([[1.0, 2.0], [NAN, float("inf")]], requires_grad=True)
    targets = torch.tensor([1, void])
    rows = site_rows(Sites(logits, targets, torch.tensor([1.0, 0.0]), logits, logits))
    for values in (rows.logits, rows.old_logits, rows.reference_logits):
        assert values.tolist() == [[1, 2], [0, 0]]
    assert rows.targets.tolist() == [1, -1]
    assert not rows.old_logits.requires_grad and not rows.reference_logits.requires_grad
    rows.logits.sum().backward()
    assert logits.grad.tolist() == [[1, 1], [0, 0]]


def test_labels_may_be_of_any_integer_type():
    targets = torch.tensor([1, 255], dtype=torch.uint8)
    assert site_rows(Sites(torch.zeros(2, 3), targets, torch.tensor([1.0, 0.0]))).targets.tolist() == [1, -1]


def test_clear_void_keeps_what_is_whole():
    values = torch.randn(2, 3)
    assert clear_void(values, torch.ones(2)) is values


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 3), (4,), (3,)), r"logits are \(4, 3\) and weights \(3,\)"),
        (((4,), (4,), (4,)), r"expected \(B, K, \*space\) and \(B, \*space\)"),
        (((4, 3), (5,), (4,)), r"targets are \(5,\), expected labels \(4,\) or memberships \(4, 3\)"),
        (((4, 3, 2), (4,), (4, 2)), r"targets are \(4,\), expected labels \(4, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    logits, targets, weights = shapes
    with pytest.raises(ValueError, match=message):
        site_rows(Sites(torch.zeros(logits), torch.zeros(targets, dtype=torch.int64), torch.ones(weights)))


def test_other_mistakes():
    logits, targets, weights = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.ones(2)
    with pytest.raises(ValueError, match=r"memberships are torch\.int64, expected bool"):
        site_rows(Sites(logits, torch.zeros(2, 3, dtype=torch.int64), weights))
    with pytest.raises(ValueError, match=r"old_logits are \(2, 4\), expected \(2, 3\)"):
        site_rows(Sites(logits, targets, weights, torch.zeros(2, 4)))
    with pytest.raises(ValueError, match=r"reference_logits are \(1, 3\)"):
        site_rows(Sites(logits, targets, weights, None, torch.zeros(1, 3)))
