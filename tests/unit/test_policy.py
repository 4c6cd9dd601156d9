"""The policy over the output set: log-probabilities, entropy, KL divergence, expectation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_rm.policy import entropy, expectation, kl_divergence, log_policy


def random_policy(*shape, seed=0):
    return log_policy(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def test_goldens():
    """Logits (log 1, log 2, log 5) are the policy (1/8, 2/8, 5/8)."""
    log_probs = log_policy(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log())
    assert log_probs.exp().tolist() == pytest.approx([0.125, 0.25, 0.625])
    assert entropy(log_probs).item() == pytest.approx(0.9002561)
    assert kl_divergence(log_probs, torch.full((3,), 1 / 3, dtype=torch.float64).log()).item() == pytest.approx(
        math.log(3) - 0.9002561
    )
    assert expectation(torch.tensor([8.0, 4.0, 0.0]), log_probs).item() == pytest.approx(2.0)


def test_naive_reference():
    logits = 3 * torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other, values = random_policy(6, 7, seed=2), random_policy(6, 7, seed=3)
    log_probs = log_policy(logits)
    for n, row in enumerate(logits.tolist()):
        normalizer = sum(math.exp(z) for z in row)
        probs = [math.exp(z) / normalizer for z in row]
        assert log_probs[n].exp().tolist() == pytest.approx(probs)
        assert entropy(log_probs)[n].item() == pytest.approx(-sum(p * math.log(p) for p in probs))
        assert expectation(values, log_probs)[n].item() == pytest.approx(
            sum(p * v for p, v in zip(probs, values[n].tolist(), strict=True))
        )
        assert kl_divergence(log_probs, other)[n].item() == pytest.approx(
            sum(p * (math.log(p) - q) for p, q in zip(probs, other[n].tolist(), strict=True))
        )


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_is_at_least_float32(given_dtype, expected):
    logits = torch.tensor([[1.0, -2.0, 0.5]]).to(given_dtype)
    log_probs = log_policy(logits)
    assert log_probs.dtype == expected
    torch.testing.assert_close(log_probs, torch.log_softmax(logits.to(expected), dim=-1), rtol=0, atol=1e-7)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    log_probs = log_policy(logits)
    assert log_probs.isfinite().all()
    assert entropy(log_probs).tolist() == pytest.approx([0.0, math.log(3)])
    assert kl_divergence(log_probs, log_probs.roll(1, 0)).isfinite().all()
    entropy(log_probs).sum().backward()
    assert logits.grad.isfinite().all()


def test_gradients():
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    other, values = random_policy(3, 4, seed=5), random_policy(3, 4, seed=6)
    assert torch.autograd.gradcheck(lambda z: entropy(log_policy(z)), logits)
    assert torch.autograd.gradcheck(lambda z: kl_divergence(log_policy(z), other), logits)
    assert torch.autograd.gradcheck(lambda z: kl_divergence(other, log_policy(z)), logits)
    assert torch.autograd.gradcheck(lambda z: expectation(values, log_policy(z)), logits)


@settings(max_examples=40)
@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=8),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 100),
)
def test_properties(logits, shift, seed):
    z = torch.tensor(logits, dtype=torch.float64)
    log_probs, other = log_policy(z), random_policy(len(logits), seed=seed)
    assert log_probs.exp().sum().item() == pytest.approx(1)
    torch.testing.assert_close(log_policy(z + shift), log_probs)
    assert -1e-12 <= entropy(log_probs).item() <= math.log(len(logits)) + 1e-12
    assert kl_divergence(log_probs, other).item() >= -1e-12
    assert kl_divergence(log_probs, log_probs).item() == 0
    values = torch.randn(len(logits), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert values.min() - 1e-9 <= expectation(values, log_probs) <= values.max() + 1e-9
