"""The candidates of a site: its labels and the most probable other outputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.output_set import candidate_mass, candidate_outputs


def naive_candidates(logits, labels, others):
    """Labels by falling logit, then the others by falling logit, cut to the places there are."""
    by_logit = sorted(range(len(logits)), key=lambda k: -logits[k])
    ordered = [k for k in by_logit if k in labels] + [k for k in by_logit if k not in labels]
    return ordered[: others + 1]


def test_golden():
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert candidate_outputs(logits, torch.tensor([3, 0]), 2).tolist() == [[3, 0, 1], [0, 1, 2]]
    members = torch.tensor([[False, False, True, False, True], [True, True, True, True, False]])
    assert candidate_outputs(logits, members, 2).tolist() == [[2, 4, 0], [0, 1, 2]]


@settings(max_examples=50)
@given(
    num_outputs=st.integers(3, 12),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    data=st.data(),
)
def test_naive_reference(num_outputs, seed, spread, dtype, data):
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(num_outputs, generator=generator) for _ in range(3)])
    logits = (spread * (order.double() - 2)).to(dtype)  # no two alike
    others = data.draw(st.integers(1, num_outputs - 2))
    targets = torch.randint(-1, num_outputs, (3,), generator=generator)
    members = torch.rand(3, num_outputs, generator=generator) > 0.6
    for n, chosen in enumerate(candidate_outputs(logits, targets, others).tolist()):
        assert chosen == naive_candidates(logits[n].tolist(), {max(targets[n].item(), 0)}, others)
    for n, chosen in enumerate(candidate_outputs(logits, members, others).tolist()):
        assert chosen == naive_candidates(logits[n].tolist(), set(members[n].nonzero().flatten().tolist()), others)


def test_equal_logits_still_hold_the_label():
    chosen = candidate_outputs(torch.zeros(4, 100), torch.tensor([0, 50, 99, 7]), 1)
    assert chosen[:, 0].tolist() == [0, 50, 99, 7]
    assert all(len(set(row)) == 2 for row in chosen.tolist())


def test_mass_golden():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log() + 7
    assert candidate_mass(logits, torch.tensor([[2, 0]])).item() == pytest.approx(0.65)
    assert candidate_mass(logits, torch.arange(4)[None]).item() == pytest.approx(1)


def test_mass_of_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    mass = candidate_mass(logits, torch.tensor([[0, 1], [1, 2]]))
    assert mass.tolist() == [1, 0]
